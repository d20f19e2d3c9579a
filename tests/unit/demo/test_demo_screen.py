import io

import pytest
from rich.console import Console

from ctrain.client import Status
from ctrain.demo.screen import LINES, Screen


def told(terminal: bool) -> str:
    """What is on paper after lines before, between and after the table."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=40)
    with Screen(console) as screen:
        screen.say("first")
        screen.show(Status(), None)
        for number in range(LINES):
            screen.say(f"line {number}")
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_said_after_the_last_table_is_shown(terminal: bool) -> None:
    assert f"line {LINES - 1}" in told(terminal)


def test_the_table_is_drawn_in_a_terminal_only() -> None:
    assert "champion" in told(True)
    assert "champion" not in told(False)
