"""What jobs and the command line do as drivers of the Ray cluster: one function a verb.

Takes paths and names, gives plain JSON for people and exit codes; refuses with `ctrain.errors`. Changes
of state go to the namespace's controller actor with an idempotency key, so a call that is repeated while
the actor restarts does its work once. Ray is loaded when the cluster is first needed: `check` and `audit`
work without one.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ctrain.client.client import acting_user
from ctrain.controller.controller import recover, verify
from ctrain.controller.journal import Journal
from ctrain.controller.state import State, landings
from ctrain.driver import landing
from ctrain.driver.check import check as check
from ctrain.driver.cluster import ask, ask_json, attach, controller, http_url, ingress, wait_for_health
from ctrain.driver.follow import Retrain
from ctrain.errors import CtrainError, DataError, StorageError
from ctrain.records import Json
from ctrain.spec import PipelineSpec, load_spec
from ctrain.storage import Root, open_root

Say = Callable[[str], None]
"""Takes one line of progress."""

FOLLOWED_AT_ONCE = 1000
"""Events that a look at the journal takes at most; far more than come between two looks."""


# --- without a cluster ---


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
        events = verify(journal)
        state = recover(journal)
    say(f"journal: {events:,} events, chain and snapshot intact")
    for fact in state.versions.values():
        version = read_version(place, fact.id)
        for weights in version.weights:
            read_weights(place, version, weights)
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
    left_out = [] if "://" in spec.source.path else [Path(spec.source.path)]
    code = store_code(place, code_folder(Path(spec_path), spec), left_out)
    attach()
    from ctrain.controller.actor import get_or_create_controller

    actor = get_or_create_controller(place)
    answer = ask(actor, "add", spec.to_json(), str(place.path), code, key or _key(), _by(), reason)
    route = f"{http_url()}/{spec.pipeline}"
    say(
        f"{spec.pipeline}  root {place.path}  journal {_shown(place, spec.pipeline)}  serving {route}"
        f"  token {place.path / 'token'}"
    )
    if wait:
        wait_for_health(route, wait)
        say(f"{route}/health answers, through {ingress()}")
    return {**answer, "pipeline": spec.pipeline, "root": str(place.path), "route": route, "code": code}


def stop(pipeline: str, reason: str, key: str = "", say: Say = print) -> Json:
    """End a pipeline: its application goes, its root stays."""
    answer = ask(controller(), "remove", pipeline, key or _key(), reason, _by())
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
    followed = Retrain(reason)
    for line in _follow(pipeline, int(answer.get("after", 0)), wait):
        say(f"{line['at']}  {line['kind']:<16} {line['text']}")
        ended = followed.ended(line)
        if ended:
            return {**answer, "end": line["kind"], "text": line["text"]}
        if ended is not None:
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
    answer: Json = ask_json(controller(), "status", pipeline)
    if "generation" not in answer:
        raise CtrainError(str(answer.get("error", f"{pipeline}: no status")))
    return answer


def why(pipeline: str, version: str = "", limit: int = 200, after: int = 0) -> list[Json]:
    """Events in words after number `after`, the newest `limit` of them, oldest first; from the controller."""
    lines: list[Json] = ask_json(controller(), "why", pipeline, version, limit, after)
    return lines


def pipelines() -> list[str]:
    """Names of the pipelines that the namespace's controller hosts."""
    names: list[str] = ask_json(controller(), "pipelines")
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
    names = [landing.land(spec, Path(folder))] if folder is not None else landing.landed(spec)
    return _await(spec, place, names, wait, say)


def backfill(
    spec_path: str | Path,
    folder: str | Path,
    root: str | None = None,
    wait: float = 3600.0,
    say: Say = print,
) -> Json:
    """Land every day below a folder, oldest first, and wait for all of them."""
    from ctrain.data.land import is_day

    place = open_root(root)
    spec = _hosted(place, spec_path)
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder")
    days = sorted(entry for entry in Path(folder).iterdir() if entry.is_dir() and is_day(entry.name))
    if not days:
        raise DataError(f"{folder}: no folder is named by a day; expected e.g. 2013-03-14")
    names = [landing.land(spec, day) for day in days]
    say(f"{spec.pipeline}  {len(names)} days landed, {names[0]} to {names[-1]}")
    return _await(spec, place, names, wait, say)


def _await(spec: PipelineSpec, place: Root, names: list[str], wait: float, say: Say) -> Json:
    with closing(_journal(place, spec.pipeline)) as journal:
        return {"pipeline": spec.pipeline, "partitions": landing.await_landing(journal, names, wait, say)}


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
    candidate = _version_id(state, version) if version else _newest(state)
    if against is None:
        champion = state.previous if candidate == state.champion else state.champion
    else:
        champion = _version_id(state, against) if against else ""
    if champion == candidate:
        raise CtrainError(f"{pipeline}: {version or candidate} would be compared with itself")
    request = EvaluationRequest(
        f"job-{_key()}",
        pipeline,
        str(place.path),
        state.spec,
        candidate,
        champion,
        static=state.first,
        # A comparison is not measured by itself, and to look again by hand uses no block up.
        record=tuple(pair for pair in state.record if pair.candidate != candidate),
        landed=landings(state),
    )
    attach()
    environment = {"working_dir": code_uri(place, state.code)} if state.code else {}
    task = ray.remote(score).options(name=f"evaluate {pipeline} {candidate}", runtime_env=environment)
    decision = ray.get(task.remote(request), timeout=1800)
    other = f" against {_label(state, champion)}" if champion else ""
    say(f"{pipeline}  {_label(state, candidate)}{other}: {decision.verdict.replace('_', ' ')}")
    for result in decision.criteria:
        value = "none" if result.value is None else f"{result.value:.4f}"
        say(f"  {result.metric:<10} {value:>8}  {result.rule:<24} {result.verdict}  {result.reason}")
    for text in decision.warnings:
        say(f"  warning: {text}")
    answer: Json = to_json(decision)
    return answer


def reproduce(pipeline: str, version: str = "", root: str | None = None, say: Say = print) -> Json:
    """Repeat the run of a version and compare its weights bit for bit; nothing changes by it.

    Args:
        pipeline: Name of the pipeline.
        version: Id or label; the champion by default, or the newest where none serves.
        root: Where everything is kept.
        say: Takes lines of progress.

    Raises:
        CtrainError: if the weights are not the same.
        MissingArtifactError: if the version, its code or its run's record is not there.
    """
    from ctrain.training.reproduce import reproduce as repeat

    place = open_root(root)
    state = _state(place, pipeline)
    wanted = _version_id(state, version) if version else state.champion or _newest(state)
    attach()
    say(f"{pipeline}  {_label(state, wanted)}: its run is repeated, which takes as long as it took")
    done = repeat(place, wanted)
    for name, digest in done.expected.items():
        again = done.found.get(name, "nothing")
        say(f"  {name:<8} was {digest}")
        say(f"  {'':<8} is  {again}  {'the same' if again == digest else 'differs'}")
    for name, change in done.changed.items():
        say(f"  {name:<8} {change}")
    if not done.same:
        why_not = ", ".join(f"{name} {change}" for name, change in done.changed.items())
        raise CtrainError(
            f"{pipeline}: the repeated run of {_label(state, wanted)} gave other weights"
            + (f"; since then changed: {why_not}" if why_not else ", and nothing that is recorded changed")
        )
    return {
        "pipeline": pipeline,
        "version": wanted,
        "same": True,
        "sha256": done.found,
        "changed": done.changed,
    }


def _follow(pipeline: str, after: int, seconds: float) -> Iterator[Json]:
    """Events after one, as they come; ends when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in why(pipeline, limit=FOLLOWED_AT_ONCE, after=after):
            after = line["seq"]
            yield line
        time.sleep(0.5)


def code_folder(spec_path: Path, spec: PipelineSpec) -> Path:
    """Folder of the user's code: the spec's own, unless the features' module lies here instead."""
    module = spec.features.partition(":")[0].split(".")[0]
    beside, here = spec_path.resolve().parent, Path.cwd()

    def holds(folder: Path) -> bool:
        return (folder / f"{module}.py").is_file() or (folder / module).is_dir()

    return here if holds(here) and not holds(beside) else beside


def _operate(pipeline: str, verb: str, reason: str, key: str, body: Json | None = None) -> Json:
    sent = {"reason": reason, "by": _by(), **(body or {})}
    return ask(controller(), "operate", pipeline, verb, key or _key(), sent)


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


def _newest(state: State) -> str:
    if not state.versions:
        raise CtrainError(
            f"{state.spec['pipeline']}: no model version is registered yet; run: ctrain retrain"
        )
    return max(state.versions.values(), key=lambda fact: fact.at).id


def _key() -> str:
    return uuid.uuid4().hex


def _by() -> str:
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return f"{acting_user()} (job)" if job else acting_user()


def _absolute(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def as_json(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, default=str)
