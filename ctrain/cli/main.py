"""`ctrain ...`: every verb of a pipeline.

Readings and operators' verbs go over HTTP by the client; check, start, stop, ingest, backfill, evaluate,
reproduce and audit run as a driver of the Ray cluster. Exit codes: 0 done, 1 refused or failed,
2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrain.cli.show import err, put, put_error, put_history, put_json, put_status
from ctrain.errors import CtrainError, SpecError

if TYPE_CHECKING:
    from ctrain.client import Client

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Continuous training on Ray: fresh data becomes proven weights under live traffic.",
)

SpecFile = Annotated[Path, typer.Argument(help="The pipeline's YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Pipeline = Annotated[
    str,
    typer.Option("--pipeline", "-p", envvar="CTRAIN_PIPELINE", help="Name; by default ./pipeline.yaml's."),
]
Url = Annotated[
    str, typer.Option("--url", envvar="CTRAIN_URL", help="Address of Serve.", show_default="this machine's")
]
Token = Annotated[str, typer.Option("--token", envvar="CTRAIN_TOKEN", help="By default that of the root.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the journal. Asked for.")]
By = Annotated[str, typer.Option("--by", help="Who acts; this machine's user by default.")]
Meant = Annotated[
    str, typer.Option("--version", help="Challenger that is meant; refused if it is another one.")
]
Key = Annotated[str, typer.Option("--key", help="Idempotency key; fresh by default.")]
RootPath = Annotated[str, typer.Option("--root", envvar="CTRAIN_ROOT", help="Where everything is kept.")]
Attach = Annotated[bool, typer.Option("--attach", help="Ask the controller on Ray, not Serve over HTTP.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait; 0 does not wait.")]

DEFAULT_URL = f"http://127.0.0.1:{os.environ.get('CTRAIN_HTTP_PORT', '8000')}"


# --- as a driver ---


@app.command()
def check(spec: SpecFile, as_json: Json = False) -> None:
    """List every fault of a spec and of the code it names."""
    from ctrain.driver import verbs

    found = verbs.check(spec)
    if as_json:
        put_json({"ok": True, "spec": found.to_json(), "sha256": found.sha256})
    else:
        put(f"{spec}: no faults   {found.pipeline}, spec {found.sha256[:12]}")


@app.command()
def start(
    spec: SpecFile,
    reason: Reason = "start",
    root: RootPath = "",
    source: Annotated[str, typer.Option(help="In place of the spec's source.path.")] = "",
    wait: Wait = 120.0,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Host a pipeline, and wait until it answers."""
    from ctrain.driver import verbs

    _drive(as_json, lambda say: verbs.start(spec, root or None, reason, source or None, wait, key, say))


@app.command()
def stop(pipeline: Pipeline = "", reason: Reason = "", key: Key = "", as_json: Json = False) -> None:
    """End a pipeline: its application goes, its root stays."""
    from ctrain.driver import verbs

    name, why = _pipeline(pipeline), _reason(reason, as_json)
    _drive(as_json, lambda say: verbs.stop(name, why, key, say))


@app.command()
def ingest(
    spec: SpecFile,
    folder: Annotated[str, typer.Argument(help="Folder named by its day; it is copied and sealed.")] = "",
    root: RootPath = "",
    wait: Wait = 300.0,
    as_json: Json = False,
) -> None:
    """Land one day, or wait for what has landed."""
    from ctrain.driver import verbs

    _drive(as_json, lambda say: verbs.ingest(spec, folder or None, root or None, wait, say))


@app.command()
def backfill(
    spec: SpecFile,
    folder: Annotated[Path, typer.Argument(help="Folder of folders that are named by their days.")],
    root: RootPath = "",
    wait: Wait = 3600.0,
    as_json: Json = False,
) -> None:
    """Land every day below a folder, oldest first."""
    from ctrain.driver import verbs

    _drive(as_json, lambda say: verbs.backfill(spec, folder, root or None, wait, say))


@app.command()
def evaluate(
    pipeline: Pipeline = "",
    version: Annotated[str, typer.Option(help="Id or label; the newest by default.")] = "",
    against: Annotated[
        str | None, typer.Option(help="Id or label; the champion by default, '' for nobody.")
    ] = None,
    root: RootPath = "",
    as_json: Json = False,
) -> None:
    """Judge a version once more; nothing changes by it."""
    from ctrain.driver import verbs

    name = _pipeline(pipeline)
    _drive(as_json, lambda say: verbs.evaluate(name, version, against, root or None, say))


@app.command()
def reproduce(
    pipeline: Pipeline = "",
    version: Annotated[str, typer.Option(help="Id or label; the champion by default.")] = "",
    root: RootPath = "",
    as_json: Json = False,
) -> None:
    """Repeat a version's run and compare the weights bit for bit."""
    from ctrain.driver import verbs

    name = _pipeline(pipeline)
    _drive(as_json, lambda say: verbs.reproduce(name, version, root or None, say))


@app.command()
def audit(pipeline: Pipeline = "", root: RootPath = "", as_json: Json = False) -> None:
    """Verify the journal and every artifact's hash."""
    from ctrain.driver import verbs

    name = _pipeline(pipeline)
    _drive(as_json, lambda say: verbs.audit(name, root or None, say))


# --- over HTTP ---


@app.command()
def status(
    pipeline: Pipeline = "", url: Url = DEFAULT_URL, attach: Attach = False, as_json: Json = False
) -> None:
    """Say where a pipeline stands."""
    from ctrain.client.status import parse_status

    name = _pipeline(pipeline)
    if attach:
        from ctrain.driver import verbs

        found = verbs.status(name)
    else:
        with _client(url, name, "") as client:
            found = client.status().raw
    if as_json:
        put_json(found)
    else:
        put_status(parse_status(found))


@app.command()
def why(
    version: Annotated[str, typer.Argument(help="Id or label; the whole history by default.")] = "",
    pipeline: Pipeline = "",
    url: Url = DEFAULT_URL,
    limit: Annotated[int, typer.Option(min=1)] = 200,
    attach: Attach = False,
    as_json: Json = False,
) -> None:
    """Say why a version serves, or does not: its history in words."""
    name = _pipeline(pipeline)
    if attach:
        from ctrain.driver import verbs

        told = verbs.why(name, version, limit)
    else:
        with _client(url, name, "") as client:
            told = client.why(version, limit)
    if not told:
        raise CtrainError(f"{name}: the journal knows no {version or 'event'}")
    if as_json:
        put_json(told)
    else:
        put_history(told)


@app.command()
def retrain(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    overrides: Annotated[str, typer.Option(help='JSON, e.g. {"training": {"epochs": 3}}')] = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Start a run now."""
    try:
        changed = json.loads(overrides) if overrides else {}
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--overrides") from None
    _operate("retrain", pipeline, reason, url, token, key, as_json, by=by, overrides=changed)


@app.command()
def promote(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    version: Meant = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Make the challenger the champion, without the statistics that are left."""
    _operate("promote", pipeline, reason, url, token, key, as_json, by=by, version=version)


@app.command()
def abort(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    version: Meant = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Withdraw the challenger."""
    _operate("abort", pipeline, reason, url, token, key, as_json, by=by, version=version)


@app.command()
def rollback(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    version: Meant = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Withdraw the challenger and go back to the previous champion."""
    _operate("rollback", pipeline, reason, url, token, key, as_json, by=by, version=version)


@app.command()
def pause(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    version: Meant = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Freeze the split; nothing is promoted."""
    _operate("pause", pipeline, reason, url, token, key, as_json, by=by, version=version)


@app.command()
def resume(
    pipeline: Pipeline = "",
    reason: Reason = "",
    by: By = "",
    version: Meant = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """End a pause."""
    _operate("resume", pipeline, reason, url, token, key, as_json, by=by, version=version)


# --- parts ---


def _operate(
    verb: str, pipeline: str, reason: str, url: str, token: str, key: str, as_json: bool, **more: Any
) -> None:
    name, why = _pipeline(pipeline), _reason(reason, as_json)
    with _client(url, name, token or _root_token()) as client:
        done = getattr(client, verb)(reason=why, key=key or None, **more)
    if as_json:
        put_json(done)
    else:
        word = "wanted" if verb == "retrain" else "done"
        put(
            f"{name}  {verb}: {word}" + (f", generation {done['generation']}" if "generation" in done else "")
        )


def _drive(as_json: bool, verb: Callable[[Callable[[str], None]], Any]) -> None:
    """Run a driver's function with its progress: on stdout, or on stderr beside JSON."""
    say: Callable[[str], None] = (lambda line: err.print(line, markup=False)) if as_json else put
    spinner = err.status("working") if err.is_terminal and not as_json else nullcontext()
    with spinner:
        answer = verb(say)
    if as_json:
        put_json(answer)


def _client(url: str, pipeline: str, token: str) -> Client:
    from ctrain.client import Client

    return Client(url, pipeline, token or None)


def _pipeline(name: str) -> str:
    """The pipeline meant: by option or CTRAIN_PIPELINE, else that of ./pipeline.yaml."""
    if name:
        return name
    if Path("pipeline.yaml").is_file():
        from ctrain.spec import load_spec

        return load_spec("pipeline.yaml").pipeline
    raise typer.BadParameter(
        "no pipeline named, and no pipeline.yaml in this folder", param_hint="--pipeline"
    )


def _reason(reason: str, as_json: bool) -> str:
    if not reason and not as_json and sys.stdin.isatty():
        reason = str(typer.prompt("reason"))
    if not reason.strip():
        raise typer.BadParameter("say why; it stands in the journal", param_hint="--reason")
    return reason


def _root_token() -> str:
    """The root's token if this machine has it; the server refuses the verb otherwise."""
    from ctrain.storage import open_root

    file = open_root().path / "token"
    return open_root().token() if file.exists() and os.access(file, os.R_OK) else ""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command `ctrain`; gives the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=given, prog_name="ctrain", standalone_mode=False)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except typer.Abort:
        put_error("aborted")
        return 1
    except CtrainError as error:
        _failed(error, "--json" in given)
        return 1
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage, as typer has it
            error.show()
            return 2
        raise
    return code if isinstance(code, int) else 0


def _failed(error: CtrainError, as_json: bool) -> None:
    if not as_json:
        put_error(str(error))
        return
    answer: dict[str, Any] = {"ok": False, "error": type(error).__name__, "message": str(error)}
    if isinstance(error, SpecError):
        answer["faults"] = [fault._asdict() for fault in error.faults]
    put_json(answer)
