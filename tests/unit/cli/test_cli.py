import getpass
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from ctrain.cli import main as cli
from ctrain.client import Client
from ctrain.controller.state import State
from ctrain.driver import landing, verbs
from ctrain.errors import CtrainError, DataError, StorageError
from ctrain.spec import load_spec
from ctrain.storage import open_root

SPEC = """
pipeline: flights-late
owner: team
source: {type: files, path: landing, event_time: t}
features: cli_user_code:view
label: {name: y}
"""
CODE = """
from ctrain import Column, feature_view

@feature_view(x=Column.number())
def view(rows):
    return {"x": rows["x"]}
"""
STATUS = {
    "pipeline": "flights-late",
    "champion": {
        "label": "v7",
        "version": "abc",
        "age_s": 10800,
        "trained_to": "2013-03-13",
        "warnings": ["dep may know"],
    },
    "challenger": {"label": "v8", "version": "def"},
    "split": 0.05,
    "requests": {"answered": 1204118, "failed": 0},
    "rollout": {
        "id": "r",
        "label": "v8",
        "phase": "canary",
        "step": 2,
        "steps": 3,
        "verdict": "continue",
        "metrics": [{"metric": "errors", "verdict": "pass", "text": "[no harm]"}],
    },
    "data": {"partitions": 74, "last": "2013-03-15", "refused": 1},
    "drift": {"state": "warning", "lines": ["inputs warning: dest"], "diagnosis": "serving skew: it differs"},
    "skew": {"state": "skewed", "text": "12 of 500 answers differ"},
    "next": "retrain at the next new_data",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipeline.yaml").write_text(SPEC)
    (tmp_path / "cli_user_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRAIN_ROOT", str(tmp_path / "root"))
    monkeypatch.delitem(sys.modules, "cli_user_code", raising=False)
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[httpx2.Request]]:
    """Make the command's client speak to one answer."""

    def serve(status: int, body: Any) -> list[httpx2.Request]:
        requests: list[httpx2.Request] = []

        def handle(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return httpx2.Response(status, json=body)

        def client(url: str, pipeline: str, token: str) -> Client:
            return Client(url, pipeline, token or None, transport=httpx2.MockTransport(handle))

        monkeypatch.setattr(cli, "_client", client)
        return requests

    return serve


def test_help_loads_neither_ray_nor_torch_nor_pandas() -> None:
    code = (
        "import sys; from ctrain.cli.main import main; assert main(['--help']) == 0; "
        "assert not {'ray', 'torch', 'pandas', 'alibi_detect'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_check_says_that_there_are_no_faults(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "pipeline.yaml"]) == 0
    assert "pipeline.yaml: no faults   flights-late" in capsys.readouterr().out


def test_check_names_a_vouched_column_that_the_view_does_not_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = CODE.replace("x=Column", "room_type=Column").replace('"x"', '"room_type"')
    (project / "cli_user_code.py").write_text(code)
    (project / "pipeline.yaml").write_text(SPEC + "evaluation: {leaks: {vouched: [room_type, room_typ]}}\n")
    assert cli.main(["check", "pipeline.yaml"]) == 1
    text = capsys.readouterr().err
    assert "evaluation.leaks.vouched.1  the view reads no column 'room_typ'" in text
    assert "did you mean 'room_type'?" in text


def test_check_lists_faults_of_spec_and_code_together(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = SPEC.replace("code:view", "code:vew") + "evaluation: {gate: [{metric: acu, at_least: 1}]}\n"
    (project / "pipeline.yaml").write_text(bad)
    assert cli.main(["check", "pipeline.yaml"]) == 1
    text = capsys.readouterr().err
    assert "pipeline.yaml: 2 faults" in text
    assert "did you mean 'auc'?" in text
    assert "module cli_user_code has no 'vew'" in text
    assert "it has: view" in text
    assert cli.main(["check", "pipeline.yaml", "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert {fault["where"] for fault in faults} == {"evaluation.gate.0", "features"}


def test_check_survives_code_that_cannot_be_imported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "cli_user_code.py").write_text("import no_such_module_of_anyone")
    assert cli.main(["check", "pipeline.yaml"]) == 1
    assert "no_such_module_of_anyone" in capsys.readouterr().err


def test_check_tells_what_spec_and_view_do_not_show_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pipeline.yaml").write_text(SPEC.replace("name: y", "name: x"))
    assert cli.main(["check", "pipeline.yaml"]) == 1
    assert "the view reads the label 'x'" in capsys.readouterr().err


def test_status_is_a_page_for_people(
    project: Path, server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    requests = server(200, STATUS)
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert "champion v7 (3 h old, trained to 2013-03-13)" in text
    assert "challenger v8 at 5 %" in text
    assert "0 failed of 1,204,118 requests" in text
    assert "canary 2/3" in text
    assert "errors pass: [no harm]" in text
    assert "74 partitions to 2013-03-15, 1 refused" in text
    assert "  skew        12 of 500 answers differ" in text
    assert "  diagnosis   serving skew: it differs" in text
    assert "  v7 warns    dep may know" in text
    assert str(requests[0].url) == f"{cli.DEFAULT_URL}/flights-late/status"


def test_status_json_is_what_the_server_said(
    project: Path, server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server(200, STATUS)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_why_shows_the_day_once(
    project: Path, server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    events = [
        {"seq": 1, "at": "2013-03-15T06:02:00+00:00", "kind": "retrain_wanted", "text": "new_data"},
        {"seq": 2, "at": "2013-03-15T06:03:00+00:00", "kind": "gate_decided", "text": "accept"},
    ]
    server(200, {"events": events})
    assert cli.main(["why", "v8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2013-03-15 06:02  retrain wanted")
    assert lines[1].strip().startswith("06:03  gate decided")


@pytest.mark.parametrize("verb", ["retrain", "promote", "abort", "rollback", "pause", "resume"])
def test_operators_verbs_send_reason_and_the_root_s_token(
    verb: str, project: Path, server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from ctrain.storage import open_root

    token = open_root().token()
    requests = server(200, {"ok": True, "generation": 4})
    assert cli.main([verb, "--reason", "pager 4711", "--key", "k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == 4
    assert requests[0].headers["idempotency-key"] == "k"
    assert requests[0].url.path == f"/flights-late/admin/{verb}"
    assert requests[0].headers["authorization"] == f"Bearer {token}"
    assert json.loads(requests[0].content)["reason"] == "pager 4711"


def test_operators_verbs_name_the_person_and_the_challenger(
    project: Path, server: Callable[..., Any]
) -> None:
    requests = server(200, {"ok": True, "generation": 4})
    assert cli.main(["promote", "-r", "x", "--by", "ada", "--version", "v8", "--json"]) == 0
    assert cli.main(["retrain", "-r", "x", "--json"]) == 0
    first, second = (json.loads(request.content) for request in requests)
    assert (first["by"], first["version"]) == ("ada", "v8")
    assert second["by"] == getpass.getuser()


def test_why_asks_for_as_many_events_as_were_wanted(project: Path, server: Callable[..., Any]) -> None:
    requests = server(200, {"events": [{"seq": 1, "at": "", "kind": "alert", "text": ""}]})
    assert cli.main(["why", "--limit", "1000"]) == 0
    assert requests[0].url.params["limit"] == "1000"


def test_a_refusal_ends_with_one_and_its_reason(
    project: Path, server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server(409, {"error": "no rollout is under way", "generation": 3})
    assert cli.main(["abort", "-r", "x"]) == 1
    assert "no rollout is under way (present generation 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["check"],
        ["rollback"],
        ["retrain", "-r", "x", "--overrides", "{"],
        ["why", "--limit", "0"],
        ["status", "--no-such-option"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str], project: Path) -> None:
    assert cli.main(arguments) == 2


def test_without_a_name_and_a_spec_the_pipeline_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 2


def test_audit_without_a_journal_says_where_it_looked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit"]) == 1
    assert "root/flights-late/journal.db" in capsys.readouterr().err


def test_a_token_that_others_may_read_is_refused(project: Path) -> None:
    from ctrain.storage import open_root

    open_root().token()
    (open_root().path / "token").chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        cli._root_token()


def test_a_cluster_that_is_not_there_is_told_at_once(project: Path) -> None:
    # A process of its own: this one may be on the tests' Ray already.
    code = "import sys; from ctrain.cli import main; sys.exit(main.main(['status', '--attach']))"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "no Ray cluster answers" in ended.stderr


def day(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text(text)
    return folder


def test_a_day_is_copied_and_sealed_and_landing_it_again_changes_nothing(project: Path) -> None:
    spec = load_spec("pipeline.yaml")
    folder = day(project / "in" / "2020-01-01", "x\n1\n")
    assert landing.land(spec, folder) == "2020-01-01"
    seal = project / "landing" / "2020-01-01" / "_SEALED.json"
    before = seal.stat().st_mtime_ns
    assert landing.land(spec, folder) == "2020-01-01"
    assert seal.stat().st_mtime_ns == before
    (folder / "rows.csv").write_text("x\n2\n")
    with pytest.raises(DataError, match="other content"):
        landing.land(spec, folder)
    assert [file.name for file in (project / "landing").iterdir()] == ["2020-01-01"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("monday", "is no day"), ("2020-01-02", "no such folder"), ("2020-01-03", "no parquet")],
)
def test_a_folder_that_is_no_day_is_refused(name: str, words: str, project: Path) -> None:
    (project / "in" / "2020-01-03").mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        landing.land(load_spec("pipeline.yaml"), project / "in" / name)


def test_a_job_lands_where_the_pipeline_was_started_to_look(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = load_spec("pipeline.yaml").source.model_copy(update={"path": "/elsewhere"})
    spec = load_spec("pipeline.yaml").model_copy(update={"source": started})
    monkeypatch.setattr(verbs, "_state", lambda place, pipeline: State(spec=spec.to_json()))
    assert verbs._hosted(open_root(), "pipeline.yaml").source.path == "/elsewhere"


def told(*events: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Events in words, as the controller tells them."""
    return [
        {"seq": seq, "at": "", "kind": kind, "text": kind, "data": data}
        for seq, (kind, data) in enumerate(events, 1)
    ]


def run_started(run_id: str, reason: str = "why", trigger: str = "operator") -> tuple[str, dict[str, Any]]:
    return "run_started", {"trigger": trigger, "reason": reason, "request": {"run_id": run_id}}


def run_finished(run_id: str, version: str) -> tuple[str, dict[str, Any]]:
    return "run_finished", {"run_id": run_id, "version": version, "label": f"label-{version}"}


def gate(version: str, verdict: str) -> tuple[str, dict[str, Any]]:
    return "gate_decided", {"decision": {"version": version, "verdict": verdict}}


OTHERS = (
    ("promoted", {"version": "z"}),
    run_started("p-00001-1", "3 new partitions", "new_data"),
    run_finished("p-00001-1", "a"),
    gate("a", "refuse"),
    ("alert", {"alert": "drift", "text": "inputs moved"}),
)


@pytest.fixture
def retrain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask for a retrain with reason `why`, which is followed by these events."""

    def ask(*events: tuple[str, dict[str, Any]]) -> Any:
        def why(pipeline: str, limit: int, after: int) -> list[dict[str, Any]]:
            return [line for line in told(*events) if line["seq"] > after][:limit]

        monkeypatch.setattr(verbs, "_operate", lambda *arguments: {"ok": True, "after": 0})
        monkeypatch.setattr(verbs, "why", why)
        said: list[str] = []
        answer = verbs.retrain("p", "why", wait=0.2, say=said.append)
        assert len(said) == len(events) + 1
        return answer["end"]

    return ask


def test_only_the_end_of_the_run_that_was_asked_for_ends_a_retrain(retrain: Callable[..., Any]) -> None:
    ours = run_started("p-00002-1"), run_finished("p-00002-1", "b"), gate("b", "accept")
    assert (
        retrain(*OTHERS, *ours, ("aborted", {"version": "z"}), ("promoted", {"version": "b"})) == "promoted"
    )


def test_a_retrain_goes_on_with_the_next_attempt_of_its_run(retrain: Callable[..., Any]) -> None:
    failed = "run_failed", {"run_id": "p-00002-1", "error": "a worker died"}
    again = run_started("p-00002-2", "attempt 2 after: a worker died")
    rest = run_finished("p-00002-2", "b"), gate("b", "accept"), ("promoted", {"version": "b"})
    assert retrain(*OTHERS, run_started("p-00002-1"), failed, again, *rest) == "promoted"


@pytest.mark.parametrize(
    "last",
    [
        [("run_given_up", {"run_id": "p-00002-2", "error": "twice"})],
        [run_finished("p-00002-1", "b"), gate("b", "refuse")],
        [
            run_finished("p-00002-1", "b"),
            ("alert", {"alert": "gate", "text": "label-b could not be evaluated"}),
        ],
        [run_finished("p-00002-1", "b"), gate("b", "accept"), ("aborted", {"version": "b"})],
        [("pipeline_stopped", {})],
    ],
    ids=lambda last: last[-1][0],
)
def test_a_retrain_that_does_not_end_with_a_promotion_fails_with_what_ended_it(
    last: Any, retrain: Callable[..., Any]
) -> None:
    with pytest.raises(CtrainError, match=f"retrain ended with {last[-1][0]}"):
        retrain(*OTHERS, run_started("p-00002-1"), *last)


def test_a_retrain_that_is_not_over_in_time_says_that_it_goes_on(retrain: Callable[..., Any]) -> None:
    with pytest.raises(CtrainError, match="It goes on"):
        retrain(*OTHERS, run_started("p-00002-1"))


class Repeated(NamedTuple):
    expected: dict[str, str]
    found: dict[str, str]
    changed: dict[str, str]

    @property
    def same(self) -> bool:
        return self.expected == self.found


@pytest.mark.parametrize(("again", "code"), [("abc", 0), ("xyz", 1)])
def test_reproduce_shows_both_hashes_and_ends_with_one_where_they_differ(
    again: str, code: int, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("ctrain.training.reproduce")
    module.reproduce = lambda root, version: Repeated(  # type: ignore[attr-defined]
        {"served": "abc"}, {"served": again}, {"torch": "1 -> 2"}
    )
    monkeypatch.setitem(sys.modules, "ctrain.training.reproduce", module)
    monkeypatch.setattr(verbs, "attach", lambda: None)
    monkeypatch.setattr(verbs, "_state", lambda place, pipeline: State(champion="v-id"))
    assert cli.main(["reproduce"]) == code
    told = capsys.readouterr()
    assert "was abc" in told.out
    assert f"is  {again}" in told.out
    assert ("torch 1 -> 2" in told.err) == bool(code)
