import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ctrain.demo.child import Child, environment
from ctrain.errors import CtrainError

ECHO = """
import json, sys
print("a warning", file=sys.stderr)
print(json.dumps({"token": "t"}), flush=True)
for line in sys.stdin:
    if line.strip() == "die":
        sys.exit("out of ports")
    if line.strip() == "stop":
        break
    print(json.dumps({"asked": line.strip()}), flush=True)
"""


def child(folder: Path, code: str = ECHO) -> Child:
    return Child([sys.executable, "-c", code], {}, folder / "ray.log")


def test_each_line_has_its_answer(tmp_path: Path) -> None:
    one = child(tmp_path)
    assert one.answer() == {"token": "t"}
    assert one.ask("controller") == {"asked": "controller"}
    one.end()
    assert (tmp_path / "ray.log").read_text() == "a warning\n"


@pytest.mark.parametrize("again", [1, 2])
def test_a_process_that_died_is_told_with_the_end_of_its_log(tmp_path: Path, again: int) -> None:
    one = child(tmp_path)
    one.answer()
    for _ in range(again):
        with pytest.raises(
            CtrainError, match=r"Ray process ended.*ray\.log; its end:\n  a warning\n  out of"
        ):
            one.ask("die")
    one.end()


def test_what_is_no_answer_goes_into_the_log(tmp_path: Path) -> None:
    one = child(tmp_path, "print('(raylet) WARNING: 8 PYTHON worker processes'); print(7)\n" + ECHO)
    assert one.answer() == {"token": "t"}
    one.end()
    log = (tmp_path / "ray.log").read_text()
    assert "(raylet) WARNING" in log
    assert "a warning" in log


def test_the_demo_does_not_join_the_cluster_of_the_shell() -> None:
    shell = {
        "RAY_ADDRESS": "127.0.0.1:6379", "RAY_API_SERVER_ADDRESS": "x", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/t", "CTRAIN_URL": "x", "CTRAIN_ROOT": "/r", "PATH": "/bin",
    }  # fmt: skip
    found = environment(shell)
    assert set(found) & set(shell) == {"PATH"}
    assert found["RAY_worker_niceness"] == "0"


def test_ports_that_another_cluster_holds_are_left_to_it() -> None:
    with socket.socket() as other:
        with suppress(OSError):  # somebody holds it already, which is as good
            other.bind(("0.0.0.0", 8404))
        other.listen()
        found = environment({})
    assert found["RAY_SERVE_HAPROXY_STATS_PORT"] != "8404"
    ports = [int(value) for name, value in found.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 9
