"""What the demo shows: a live table in a terminal, one line an event elsewhere, a summary at the end."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ctrain.client import Status
from ctrain.demo.picture import Figures
from ctrain.demo.traffic import Traffic

LINES = 12


class Screen:
    """The terminal of the demo."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._began = time.monotonic()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._live: Live | None = None
        self._panel: Panel | None = None
        self.landed = 0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line of the story, with the seconds since the start."""
        line = f"{time.monotonic() - self._began:6.1f} s  {text}"
        self._lines.append(line)
        if self._live is None:
            self.console.print(line, highlight=False, soft_wrap=True)
        self._draw()

    def show(self, status: Status, traffic: Traffic | None) -> None:
        """Draw the table anew; nothing outside a terminal."""
        if self._live is not None:
            self._panel = Panel(_table(status, traffic, self.landed), title="ctrain")
            self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            lines = Text("\n".join(self._lines))
            self._live.update(lines if self._panel is None else Group(self._panel, lines))

    def end(self, done: dict[str, bool], traffic: Traffic, found: Figures, picture: str) -> None:
        """Print the summary."""
        table = Table(title="Summary", show_header=False)
        for name, happened in done.items():
            table.add_row("[green]yes[/]" if happened else "[red]NO[/]", name)
        self.console.print(table)
        rows = [
            (
                "requests",
                f"{traffic.sent:,} sent, {len(traffic.failed)} failed, {traffic.labelled:,} labelled",
            ),
            ("latency, steady", f"p50 {found.steady_p50:.1f} ms, p99 {found.steady_p99:.1f} ms"),
            ("in the 2 s after a decision", f"p50 {found.swap_p50:.1f} ms, p99 {found.swap_p99:.1f} ms"),
            ("AUC since the first promotion", f"{found.champion_auc:.4f} served"),
            ("the same, first model kept", f"{found.static_auc:.4f} static"),
            ("picture", picture),
        ]
        numbers = Table(show_header=False)
        for name, text in rows:
            numbers.add_row(name, text)
        self.console.print(numbers)
        for problem in traffic.failed[:5]:
            self.console.print(f"  failed: {problem}", highlight=False)


def _table(status: Status, traffic: Traffic | None, landed: int) -> Table:
    table = Table(show_header=False, expand=True)
    champion, challenger = status.champion, status.challenger
    table.add_row("days landed", f"{landed}, {status.data.partitions} committed to {status.data.last}")
    table.add_row(
        "champion", f"{champion.label}, trained to {champion.trained_to}" if champion else "none yet"
    )
    table.add_row("challenger", f"{challenger.label} at {status.split:.0%}" if challenger else "-")
    rollout = status.rollout
    if rollout is not None:
        verdicts = ", ".join(f"{item.metric} {item.verdict}" for item in rollout.metrics)
        table.add_row("rollout", f"{rollout.phase} {rollout.step}/{rollout.steps}: {verdicts}")
    table.add_row("next", status.next)
    table.add_row("drift", "; ".join(status.drift.lines) or status.drift.state)
    if traffic is not None:
        p50, p99 = traffic.latency()
        table.add_row("requests", f"{traffic.sent:,} sent, {len(traffic.failed)} failed")
        table.add_row("latency now", f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    return table
