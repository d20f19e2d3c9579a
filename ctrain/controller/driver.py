"""What jobs and the command line do as drivers of the Ray cluster: one function a verb.

Takes paths and names, gives plain JSON for people and exit codes; refuses with `ctrain.errors`. Changes
of state go to the namespace's controller actor with an idempotency key, so a call that is repeated while
the actor restarts does its work once. Ray is loaded when the cluster is first needed: `check` and `audit`
work without one.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ctrain.controller.controller import recover
from ctrain.controller.journal import Event, Journal
from ctrain.controller.state import State
from ctrain.errors import CtrainError, DataError, Fault, ServingError, SpecError, StorageError, UserCodeError
from ctrain.records import Json
from ctrain.spec import PipelineSpec, load_spec
from ctrain.storage import Root, open_root

Say = Callable[[str], None]
"""Takes one line of progress."""

_USER_CODE_FAILS = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError)
_ENDS = {"promoted", "aborted", "rolled_back", "run_given_up", "pipeline_stopped"}
"""Kinds of event that end what a retrain began; a gate that does not accept ends it as well."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ours serves on this machine or cluster: proxies of the environment do not know it."""


# --- without a cluster ---


def check(path: str | Path) -> PipelineSpec:
    """Read a spec and import the code it names.

    Raises:
        SpecError: lists every fault of the file and of the code.
    """
    file = Path(path)
    faults: list[Fault] = []
    spec: PipelineSpec | None = None
    try:
        spec = load_spec(file)
    except SpecError as error:
        faults += error.faults
    faults += _code_faults(file)
    if faults or spec is None:
        raise SpecError(str(path), tuple(faults))
    return spec


def audit(pipeline: str, root: str | None = None, say: Say = print) -> Json:
    """Verify the journal's chain, and the hash of every artifact of the versions it knows.

    Raises:
        TamperedError: names the first event that was altered.
        CorruptArtifactError: names the first file that is not what its manifest says.
        MissingArtifactError: names the first file that is gone.
    """
    from ctrain.registry import read_version, read_weights

    place = open_root(root)
    with closing(_journal(place, pipeline)) as journal:
        events = journal.verify()
        state = recover(journal)
    say(f"journal: {events:,} events, chain intact")
    for fact in state.versions.values():
        version = read_version(place, fact.id)
        read_weights(place, version, "judged")
        read_weights(place, version, "served")
        say(f"{fact.label}: manifest and weights are what their hashes say")
    return {"pipeline": pipeline, "events": events, "versions": len(state.versions), "intact": True}


# --- the life of a pipeline ---


def start(
    spec_path: str | Path,
    root: str | None = None,
    reason: str = "start",
    source: str | None = None,
    wait: float = 120.0,
    key: str = "",
    say: Say = print,
) -> Json:
    """Host a pipeline in the namespace's controller, and wait until its application answers.

    Args:
        spec_path: The pipeline's YAML file; its folder holds the user's code.
        root: Where everything is kept; CTRAIN_ROOT or `~/.ctrain` by default.
        reason: Why; it stands in the journal.
        source: Replaces the spec's source path: a job needs an absolute one.
        wait: Seconds to wait for the application; 0 does not wait.
        key: Idempotency key; a fresh one by default.
        say: Takes lines of progress.

    Raises:
        SpecError: if the spec or its code has faults.
        ServingError: if the application does not answer in time.
    """
    from ctrain.storage.code import store_code

    spec = check(spec_path)
    if source is not None:
        spec = spec.model_copy(update={"source": spec.source.model_copy(update={"path": source})})
    if "runtime_resources" in Path(spec.source.path).parts or not _absolute(spec.source.path):
        raise DataError(
            f"source.path {spec.source.path}: a job runs in a copied folder, which is deleted with it. "
            "Give an absolute path or a URL in the spec, or pass --source"
        )
    place = open_root(root)
    place.token()  # made before the first request may need it
    landing = [] if "://" in spec.source.path else [Path(spec.source.path)]
    code = store_code(place, code_folder(Path(spec_path), spec), landing)
    attach()
    from ctrain.controller.actor import get_or_create_controller

    actor = get_or_create_controller(place)
    answer = _ask(actor, "add", spec.to_json(), str(place.path), code, key or _key(), _by(), reason)
    route = f"{http_url()}/{spec.pipeline}"
    say(
        f"{spec.pipeline}  root {place.path}  journal {_shown(place, spec.pipeline)}  serving {route}"
        f"  token {place.path / 'token'}"
    )
    if wait:
        _wait_for_health(route, wait)
        say(f"{route}/health answers, through {_ingress()}")
    return {**answer, "pipeline": spec.pipeline, "root": str(place.path), "route": route, "code": code}


def stop(pipeline: str, reason: str, key: str = "", say: Say = print) -> Json:
    """End a pipeline: its application goes, its root stays."""
    answer = _ask(_controller(), "remove", pipeline, key or _key(), reason, _by())
    say(f"{pipeline}  stopped; its root stays as it is")
    return answer


def retrain(
    pipeline: str,
    reason: str,
    overrides: Json | None = None,
    wait: float = 0.0,
    key: str = "",
    say: Say = print,
) -> Json:
    """Start a run; with `wait` seconds, follow it to its end.

    Raises:
        CtrainError: if the run or the gate ended otherwise than by a promotion, or not in time.
    """
    body: Json = {"overrides": overrides} if overrides else {}
    answer = _operate(pipeline, "retrain", reason, key, body)
    say(f"{pipeline}  retrain wanted: {reason}")
    if not wait:
        return answer
    ours = False  # until then, what is told is of a run or rollout that was under way before
    for line in _follow(pipeline, int(answer.get("after", 0)), wait):
        say(f"{line['at']}  {line['kind']:<16} {line['text']}")
        if line["kind"] == "run_started":
            ours = (line["data"].get("trigger"), line["data"].get("reason")) == ("operator", reason)
        if not ours and line["kind"] != "pipeline_stopped":
            continue
        refused = line["kind"] == "gate_decided" and line["data"]["decision"]["verdict"] != "accept"
        if line["kind"] == "promoted":
            return {**answer, "end": line["kind"], "text": line["text"]}
        if refused or line["kind"] in _ENDS:
            raise CtrainError(f"{pipeline}: retrain ended with {line['kind']}: {line['text']}")
    raise CtrainError(f"{pipeline}: no end of the retrain after {wait:g} s. It goes on: ctrain status")


def rollback(pipeline: str, reason: str, key: str = "", say: Say = print) -> Json:
    """Withdraw the challenger and go back to the previous champion."""
    answer = _operate(pipeline, "rollback", reason, key)
    say(
        f"{pipeline}  rolled back"
        + (f", generation {answer['generation']}" if "generation" in answer else "")
    )
    return answer


def status(pipeline: str) -> Json:
    """What `GET /status` gives, from the controller itself.

    Raises:
        CtrainError: if no such pipeline is hosted.
    """
    answer: Json = _ask_json(_controller(), "status", pipeline)
    if "generation" not in answer:
        raise CtrainError(str(answer.get("error", f"{pipeline}: no status")))
    return answer


def why(pipeline: str, version: str = "", limit: int = 200) -> list[Json]:
    """Events in words, newest last, from the controller itself."""
    lines: list[Json] = _ask_json(_controller(), "why", pipeline, version, limit)
    return lines


def pipelines() -> list[str]:
    """Names of the pipelines that the namespace's controller hosts."""
    names: list[str] = _ask_json(_controller(), "pipelines")
    return names


# --- data ---


def ingest(
    spec_path: str | Path,
    folder: str | Path | None = None,
    root: str | None = None,
    wait: float = 300.0,
    say: Say = print,
) -> Json:
    """Land one day and wait until it is committed or refused.

    Args:
        spec_path: The pipeline's YAML file. The source is the one that the pipeline was started with.
        folder: A folder named by its day with parquet or CSV files; it is copied into the source and
            sealed. None waits for what has landed there already.
        root: Where everything is kept.
        wait: Seconds to wait.
        say: Takes lines of progress.

    Raises:
        DataError: if it was refused, or nothing came of it in time.
    """
    place = open_root(root)
    spec = _hosted(place, spec_path)
    names = [_land(spec, Path(folder))] if folder is not None else _landed(spec)
    return _await_landing(spec, place, names, wait, say)


def backfill(
    spec_path: str | Path,
    folder: str | Path,
    root: str | None = None,
    wait: float = 3600.0,
    say: Say = print,
) -> Json:
    """Land every day below a folder, oldest first, and wait for all of them."""
    place = open_root(root)
    spec = _hosted(place, spec_path)
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder")
    days = sorted(entry for entry in Path(folder).iterdir() if entry.is_dir() and _is_day(entry.name))
    if not days:
        raise DataError(f"{folder}: no folder is named by a day; expected e.g. 2013-03-14")
    names = [_land(spec, day) for day in days]
    say(f"{spec.pipeline}  {len(names)} days landed, {names[0]} to {names[-1]}")
    return _await_landing(spec, place, names, wait, say)


# --- judging ---


def evaluate(
    pipeline: str,
    version: str = "",
    against: str | None = None,
    root: str | None = None,
    say: Say = print,
) -> Json:
    """Score a version on its judged blocks and decide the gate again; nothing changes by it.

    Args:
        pipeline: Name of the pipeline.
        version: Id or label; the newest version by default.
        against: Id or label to compare with; the champion by default, or its predecessor where the
            champion itself is judged; empty for nobody.
        root: Where everything is kept.
        say: Takes lines of progress.

    Returns:
        The gate decision as JSON.
    """
    import ray

    from ctrain.evaluation.score import evaluate as score
    from ctrain.records import EvaluationRequest, to_json
    from ctrain.storage.code import code_uri

    place = open_root(root)
    state = _state(place, pipeline)
    if not state.versions:
        raise CtrainError(f"{pipeline}: no model version is registered yet; run: ctrain retrain")
    newest = max(state.versions.values(), key=lambda fact: fact.at).id
    candidate = _version_id(state, version) if version else newest
    if against is None:
        champion = state.previous if candidate == state.champion else state.champion
    else:
        champion = _version_id(state, against) if against else ""
    if champion == candidate:
        raise CtrainError(f"{pipeline}: {version or candidate} would be compared with itself")
    request = EvaluationRequest(f"job-{_key()}", pipeline, str(place.path), state.spec, candidate, champion)
    attach()
    environment = {"working_dir": code_uri(place, state.code)} if state.code else {}
    task = ray.remote(score).options(name=f"evaluate {pipeline} {candidate}", runtime_env=environment)
    decision = ray.get(task.remote(request), timeout=1800)
    other = f" against {_label(state, champion)}" if champion else ""
    say(f"{pipeline}  {_label(state, candidate)}{other}: {decision.verdict.replace('_', ' ')}")
    for result in decision.criteria:
        value = "none" if result.value is None else f"{result.value:.4f}"
        say(f"  {result.metric:<10} {value:>8}  {result.rule:<24} {result.verdict}  {result.reason}")
    answer: Json = to_json(decision)
    return answer


# --- the cluster ---


def attach() -> None:
    """Join the Ray cluster of this machine, or of the job this runs in.

    Raises:
        CtrainError: if none answers.
    """
    import ray
    from ray.exceptions import RayError

    from ctrain.controller.actor import namespace

    if ray.is_initialized():
        return
    try:
        _reach(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", namespace=namespace(), log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, RayError) as error:
        raise CtrainError(
            f"no Ray cluster answers ({error}). Start one with cluster/local.sh start and export what it "
            "prints, or run this with `ray job submit`"
        ) from None


def _reach(address: str) -> None:
    """Raises OSError at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def http_url() -> str:
    """Address of Serve: CTRAIN_URL, or host and port that ctrain starts it with."""
    host = os.environ.get("CTRAIN_HTTP_HOST", "127.0.0.1")
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    return os.environ.get("CTRAIN_URL") or f"http://{shown}:{os.environ.get('CTRAIN_HTTP_PORT', '8000')}"


def _ingress() -> str:
    """Which proxy stands before the replicas: Serve's switches count only where Ray was started."""
    from ray.exceptions import RayError
    from ray.util.state import list_actors

    try:
        found = list_actors(
            filters=[("class_name", "=", "HAProxyManager"), ("state", "=", "ALIVE")], timeout=5
        )
    except (RayError, OSError, RuntimeError, ValueError):
        return "a proxy that could not be told"
    if found:
        return "HAProxy"
    return (
        "Serve's Python proxy, which is slower and does not retry. For HAProxy, set "
        "RAY_SERVE_ENABLE_HA_PROXY=1 before Ray starts, as cluster/local.sh does"
    )


def code_folder(spec_path: Path, spec: PipelineSpec) -> Path:
    """Folder of the user's code: the spec's own, unless the features' module lies here instead."""
    module = spec.features.partition(":")[0].split(".")[0]
    beside, here = spec_path.resolve().parent, Path.cwd()

    def holds(folder: Path) -> bool:
        return (folder / f"{module}.py").is_file() or (folder / module).is_dir()

    return here if holds(here) and not holds(beside) else beside


def _controller() -> Any:
    attach()
    from ctrain.controller.actor import find_controller, namespace

    try:
        return find_controller()
    except ValueError:
        raise CtrainError(
            f"no controller runs in namespace {namespace()}. Start a pipeline: ctrain start pipeline.yaml"
        ) from None


def _operate(pipeline: str, verb: str, reason: str, key: str, body: Json | None = None) -> Json:
    sent = {"reason": reason, "by": _by(), **(body or {})}
    return _ask(_controller(), "operate", pipeline, verb, key or _key(), sent)


def _ask(actor: Any, method: str, *arguments: Any) -> Json:
    """Call a mutating method; an answer that is a refusal raises."""
    answer: Json = _ask_json(actor, method, *arguments)
    if not answer.get("ok"):
        raise CtrainError(f"refused with {answer.get('status')}: {answer.get('error')}")
    return answer


def _ask_json(actor: Any, method: str, *arguments: Any) -> Any:
    """Call the actor, again while it restarts: mutating calls carry a key."""
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

    end = time.monotonic() + 60.0
    while True:
        try:
            return ray.get(getattr(actor, method).remote(*arguments), timeout=30)
        except RayTaskError as error:
            if isinstance(error.cause, CtrainError):
                raise error.cause from None  # without Ray's text around it
            raise
        except (ActorUnavailableError, GetTimeoutError) as error:
            if time.monotonic() > end:
                raise ServingError(f"the controller does not answer: {error}") from None
            time.sleep(0.5)


def _follow(pipeline: str, after: int, seconds: float) -> Iterator[Json]:
    """Events after one, as they come; ends when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in why(pipeline, limit=200):
            if line["seq"] > after:
                after = line["seq"]
                yield line
        time.sleep(0.5)


def _wait_for_health(route: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with _DIRECT.open(f"{route}/health", timeout=5) as response:
                if response.status == 200:
                    return
                problem = f"answered {response.status}"
        except (urllib.error.URLError, OSError) as error:
            problem = str(error)
        if time.monotonic() > end:
            raise ServingError(
                f"{route}/health: {problem} after {seconds:g} s. The pipeline is hosted; see "
                "`ctrain status --attach`, and Serve's logs in the Ray dashboard"
            )
        time.sleep(0.25)


# --- parts ---


def _shown(place: Root, pipeline: str) -> str:
    url = place.pipeline(pipeline).journal_url()
    return url.removeprefix("sqlite:///") if url.startswith("sqlite") else url.split("@")[-1]


def _journal(place: Root, pipeline: str) -> Journal:
    url = place.pipeline(pipeline).journal_url()
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise StorageError(
            f"{pipeline}: no journal at {_shown(place, pipeline)}. Check the name and CTRAIN_ROOT"
        )
    return Journal(url, pipeline)


def _state(place: Root, pipeline: str) -> State:
    with closing(_journal(place, pipeline)) as journal:
        return recover(journal)


def _hosted(place: Root, spec_path: str | Path) -> PipelineSpec:
    """The spec of a file, with the source that its pipeline was started with: a job runs in a copied
    folder, where a relative path leads nowhere."""
    spec = load_spec(spec_path)
    started = _state(place, spec.pipeline)
    return spec.model_copy(update={"source": started.pipeline_spec().source}) if started.spec else spec


def _label(state: State, version: str) -> str:
    fact = state.versions.get(version)
    return f"{fact.label} ({version})" if fact else version


def _version_id(state: State, name: str) -> str:
    for fact in state.versions.values():
        if name in (fact.id, fact.label):
            return fact.id
    known = ", ".join(fact.label for fact in state.versions.values())
    raise CtrainError(f"no model version {name!r}; there are {known}")


def _key() -> str:
    return uuid.uuid4().hex


def _by() -> str:
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user} (job)" if job else user


def _absolute(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _is_day(name: str) -> bool:
    try:
        date.fromisoformat(name)
    except ValueError:
        return False
    return True


def _landed(spec: PipelineSpec) -> list[str]:
    from ctrain.data import FileSource

    sightings = FileSource(spec).look({})
    missing = [one.problem for one in sightings if not one.name]
    if missing:
        raise DataError(missing[0])
    return [one.name for one in sightings if one.partition is not None]


def _land(spec: PipelineSpec, folder: Path) -> str:
    """Copy a day's files beside the source, seal them, and move the folder into place."""
    from ctrain.data.land import SEAL, seal_partition

    name = folder.resolve().name
    if not _is_day(name):
        raise DataError(f"{folder}: the folder's name is no day; expected e.g. 2013-03-14")
    if "://" in spec.source.path:
        raise DataError(f"source.path {spec.source.path} is a URL: upload and seal there, then ingest alone")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    landing = Path(spec.source.path)
    target = landing / name
    if folder.resolve() == target.resolve():
        if not (target / SEAL).exists():
            seal_partition(target)
        return name
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".parquet", ".csv")]
    if not files:
        raise DataError(f"{folder}: no parquet or CSV file in it")
    if (target / SEAL).exists():
        if _same(files, target):
            return name
        raise DataError(
            f"{folder}: {name} has landed with other content, which stands. "
            "Land corrections as a new partition"
        )
    fresh = landing / f".{name}.{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    for file in files:
        shutil.copy2(file, fresh / file.name)
    seal_partition(fresh)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
    return name


def _same(files: Sequence[Path], sealed: Path) -> bool:
    """Whether a sealed partition holds just these files."""
    from ctrain.data.land import SEAL
    from ctrain.storage import file_sha256

    entries = json.loads((sealed / SEAL).read_text(encoding="utf-8"))["files"]
    return {file.name: file_sha256(file) for file in files} == {
        entry["name"]: entry["sha256"] for entry in entries
    }


def _await_landing(spec: PipelineSpec, place: Root, names: Sequence[str], wait: float, say: Say) -> Json:
    """Wait until the journal has an end for every partition; a refused one raises at the end."""
    wanted, after, found = set(names), 0, dict[str, Json]()
    end = time.monotonic() + wait
    with closing(_journal(place, spec.pipeline)) as journal:
        while wanted - set(found):
            for event in journal.read(after=after):
                after = event.seq
                for name, outcome in _outcomes(event):
                    if name in wanted and name not in found:
                        found[name] = outcome
                        say(f"{name}  {outcome['rows']:,} rows, {outcome['quarantined']} quarantined"
                            + (f"; refused: {outcome['refused']}" if outcome["refused"] else ""))  # fmt: skip
            if time.monotonic() > end:
                left = ", ".join(sorted(wanted - set(found))[:5])
                raise DataError(f"nothing came of {left} in {wait:g} s. Does the pipeline run? ctrain status")
            time.sleep(0.25)
    refused = [name for name, outcome in found.items() if outcome["refused"]]
    if refused:
        raise DataError(f"{len(refused)} of {len(found)} partitions were refused: {', '.join(refused[:5])}")
    return {"pipeline": spec.pipeline, "partitions": found}


def _outcomes(event: Event) -> Iterator[tuple[str, Json]]:
    if event.kind in ("partition_committed", "partition_refused"):
        item = event.data["partition"]
        report = item["report"]
        outcome = {
            "rows": report["accepted"],
            "quarantined": sum(report["reasons"].values()),
            "refused": item["refused"],
            "dataset_version": item["dataset_version"],
        }
        yield item["name"], outcome


def _code_faults(file: Path) -> list[Fault]:
    """Faults of the code that a spec file names, whatever else is wrong with the file."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(raw, dict):
        return []
    model = raw.get("model")
    named = {"features": raw.get("features")}
    if isinstance(model, dict) and model.get("type") == "module":
        named["model.factory"] = model.get("factory")
    folders = [str(file.resolve().parent), str(Path.cwd())]
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        checks = [_code_fault(where, path) for where, path in named.items()]
    finally:
        sys.path[:] = before
    return [fault for fault in checks if fault is not None]


def _code_fault(where: str, path: Any) -> Fault | None:
    import importlib

    from ctrain.features import load_view

    if not isinstance(path, str) or path.count(":") != 1 or not all(path.split(":")):
        return None  # the spec itself says what is wrong with it
    module_name, attribute = path.split(":")
    try:
        if where == "features":
            load_view(path)
        else:
            module = importlib.import_module(module_name)
            if not callable(getattr(module, attribute, None)):
                has = ", ".join(sorted(name for name in vars(module) if not name.startswith("_")))
                return Fault(where, f"{path}: module {module_name} has no {attribute!r}", f"it has: {has}")
    except UserCodeError as error:
        return Fault(where, f"{path}: {error.problem}", error.remedy)
    except (CtrainError, *_USER_CODE_FAILS) as error:
        return Fault(where, f"{path}: importing it failed: {type(error).__name__}: {error}", "")
    return None


def as_json(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, default=str)
