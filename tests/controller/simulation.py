"""Simulated histories: the real controller, policy and journal, with fakes, crashes and wrong clocks.

    python tests/controller/simulation.py --seeds 5000 [--mutant no_serve_fence]

Two controllers take turns; each may be killed before or after any call to a room or the journal, and
an older one may wake up again. Rooms and the database fail for a moment, documents are delivered late and
twice, replicas restart, the application is deleted, people ask for everything that they may ask for, runs
fail, gates refuse, windows find drift, broken data, and days on which a champion is worse. At the end of a
history everything that was asked for must have happened once, and serving must stand where the journal does.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from factories import spec
from fakes import FakeClock, FakeEvaluation, FakeIngest, FakeMonitoring, FakeReplica, FakeServing, World
from sqlalchemy.exc import OperationalError

from ctrain.controller import controller as controller_module
from ctrain.controller import decide as decide_module
from ctrain.controller.clock import SteadyClock
from ctrain.controller.controller import Controller, recover, verify
from ctrain.controller.decide import due
from ctrain.controller.fold import fold
from ctrain.controller.journal import Event, Journal, Operation
from ctrain.controller.observations import Seen
from ctrain.controller.state import State
from ctrain.errors import FencedError, JournalError
from ctrain.records import (
    Diagnosis,
    DriftReport,
    Json,
    LiveDocument,
    Observed,
    ShadowBlock,
    SkewReport,
    WindowReport,
    WindowRequest,
)

MUTANTS = (
    "no_serve_fence",
    "no_journal_fence",
    "edge_triggered",
    "act_before_commit",
    "no_idempotency_key",
    "no_observed_generation",
)
STEPS = 160
logging.getLogger("ctrain.controller").setLevel(logging.CRITICAL)
CALM = 400
"""Steps without crashes in which everything that was asked for must come to its end."""

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A history is no test of the disk."""
VERSIONS = 3


class Crash(BaseException):
    """The process was killed here: nothing catches it."""


class Violation(AssertionError):
    """A history broke an invariant."""


class Dice:
    """Crashes and faults, each with some probability at every point that is asked about."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.crash, self.fault, self.crashes, self.calm = rng, 0.0, 0.0, 0, False

    def point(self, fault: Exception | None = None) -> None:
        if self.rng.random() < self.crash:
            self.crashes += 1
            raise Crash
        if fault is not None and self.rng.random() < self.fault:
            raise fault


class Crashing:
    """A room whose every call may be the last, or fail, before it or after it."""

    def __init__(self, room: Any, dice: Dice) -> None:
        self._room, self._dice = room, dice

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._room, name)

        def call(*args: Any) -> Any:
            self._dice.point(ConnectionError("away"))
            result = method(*args)
            # A poll hands its outcomes out once: they are lost with the process, never with the answer.
            self._dice.point(None if name == "poll" else ConnectionError("the answer was lost"))
            return result

        return call


class CrashingJournal(Journal):
    """A journal around whose commits the process may die; mutants leave its guards out."""

    def __init__(self, first: Journal, dice: Dice, mutant: str) -> None:
        # One engine a history: SQLAlchemy compiles its statements anew for each.
        self.pipeline, self._engine = first.pipeline, first._engine
        self._dice, self._mutant = dice, mutant

    def check(self, epoch: int) -> None:
        if self._mutant != "no_journal_fence":
            super().check(epoch)

    def append(
        self, epoch: int, entries: Any, at: float, operation: Operation | None = None, accept: Any = None
    ) -> list[Event]:
        self._dice.point(OperationalError("append", {}, Exception("locked")))
        if self._mutant == "no_journal_fence":
            with self._engine.connect() as connection:
                epoch = self._epoch(connection)
        if self._mutant == "no_idempotency_key":
            operation = None
        events = super().append(epoch, entries, at, operation, accept)
        self._dice.point(OperationalError("append", {}, Exception("the answer was lost")))
        return events


class LateServing(FakeServing):
    """Documents reach a replica now, later, or twice; every replica also pulls in the end."""

    def __init__(self, rng: random.Random, mutant: str, journaled: Callable[[], int]) -> None:
        super().__init__(
            [FakeReplica("a", mutant != "no_serve_fence"), FakeReplica("b", mutant != "no_serve_fence")]
        )
        self.rng, self.mail, self.journaled = rng, [], journaled  # type: ignore[var-annotated]
        self.steered: list[tuple[int, int]] = []
        """(generation, number of events journaled by then) of every document that was sent."""

    def apply(self, document: LiveDocument) -> None:
        self.steered.append((document.generation, self.journaled()))
        if self.stored is None or document.order >= self.stored.order:
            self.stored = document
        for replica in self.replicas:
            for _ in range(self.rng.choice((0, 1, 1, 1, 2))):
                self.mail.append((self.rng.choice((0, 0, 1, 5, 30)), replica, document))

    def tick(self) -> None:
        due = [item for item in self.mail if item[0] <= 0]
        self.mail = [(age - 1, replica, document) for age, replica, document in self.mail if age > 0]
        self.rng.shuffle(due)
        for _, replica, document in due:
            replica.take(document)


class MoodyMonitoring(FakeMonitoring):
    """Windows that find all that may be found, while the world is not calm."""

    def __init__(self, rng: random.Random, calm: Callable[[], bool], versions: list[str]) -> None:
        super().__init__()
        self._rng, self._calm, self._versions = rng, calm, versions

    def start(self, request: WindowRequest) -> None:
        """Make up a report."""
        rng, drifts = self._rng, not self._calm() and self._rng.random() < 0.3
        state = "drift" if drifts else "steady"
        drift = DriftReport("data", state, drifts, 1.0, 1.0, (), 500, 1, "", "made up")
        action = rng.choice(
            ("none", "wait", "quarantine", "hold_training", "retrain", "roll_back", "escalate")
        )
        self.report = WindowReport(
            0.0, 0.0, 500, 400, {"auc": 0.7},
            drift=(drift,),
            diagnosis=Diagnosis("unknown", action, reason="made up") if drifts else None,
            skew=None if self._calm() else SkewReport(rng.choice(("alike", "skewed")), 9, 1, 0.1, 0.1),
            blocks=tuple(self._block(request) for _ in range(0 if self._calm() else rng.randrange(16))),
        )  # fmt: skip
        super().start(request)

    def _block(self, request: WindowRequest) -> ShadowBlock:
        """A day on which the champion and some other version scored the same requests."""
        rng = self._rng
        good, bad = ({"auc": auc + rng.gauss(0, 0.005)} for auc in (0.75, rng.choice((0.75, 0.6, 0.5))))
        day, other = rng.randrange(1, 29), rng.choice(self._versions[:6:2])
        return ShadowBlock(f"2013-03-{day:02d}", request.champion, other, 900, 300, bad, good)


def mutate(controller: Controller, mutant: str) -> None:
    """Break one controller on purpose."""
    if mutant == "edge_triggered":
        # Acts on the transition only: what a crash left undone is never found again.
        controller._started |= {command.key for command in due(controller.state)}
        controller._applied, controller._applied_at = controller.document.order, float("inf")
    if mutant == "no_observed_generation":
        decide_now = controller._decide

        def hasty(observation: Any) -> Any:
            state, decision = controller.state, decide_now(observation)
            if state.rollout is None or not isinstance(observation, Seen):
                return decision
            controller.state = replace(state, rollout=replace(state.rollout, since=state.at - 100.0))
            looked = decide_now(Seen(believed(observation.observed, controller.document)))
            controller.state = state
            seen = any(entry.kind == "converged" for entry in decision.events)
            return replace(looked, events=tuple(e for e in looked.events if seen or e.kind != "converged"))

        controller._decide = hasty  # type: ignore[method-assign]
    if mutant == "act_before_commit":
        commit = controller._commit

        def early(decision: Any, operation: Any = None) -> Any:
            before = controller.state
            for number, entry in enumerate(decision.events, before.seq + 1):
                event = Event(number, controller.epoch, controller._now(), entry.kind, entry.data, "", "")
                controller.state = fold(controller.state, event)
            if controller.state is not before:
                controller._steer_now()  # type: ignore[attr-defined]
            controller.state = before
            return commit(decision, operation)

        def steer_now() -> None:
            with suppress(ConnectionError):
                controller._rooms.serving.apply(controller.document)

        controller._steer_now = steer_now  # type: ignore[attr-defined]
        controller._commit = early  # type: ignore[method-assign]


def believed(observed: Observed, document: LiveDocument) -> Observed:
    """What replicas would say if each had taken the document."""
    held = {slot.version: slot.sha256 for slot in document.slots.values()}
    taken = [replace(r, generation=document.generation, resident=held) for r in observed.reports]
    return replace(observed, reports=tuple(taken))


class Asked:
    """What people ask for, each again and again under its key, and what they were told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.requests = [("start", "k-start", self.body())]
        self.told: dict[str, Json] = {}

    def body(self) -> Json:
        steps = self.rng.choice(([0.1, 0.5], [0.1, 0.5], [0.2], [0.05, 0.2, 0.5]))
        plan = {"type": "canary", "shadow": 20, "steps": steps, "hold": 5.0}
        triggers = [{"type": "new_data"}, {"type": "drift", "cooldown": 20}]
        label = {"name": "y", "matures_after": self.rng.choice(("0d", "0d", "1d"))}
        body = spec(rollout=plan, triggers=triggers, monitoring={"window": 15.0}, label=label)
        return {"spec": body.to_json(), "code": self.rng.choice(("", "c1"))}

    def something(self, step: int) -> None:
        """One more wish, of any kind."""
        verb = self.rng.choice(
            ("retrain", "pause", "resume", "abort", "promote", "rollback", "stop", "start")
        )
        self.requests.append((verb, f"k-{step}-{verb}", self.body() if verb == "start" else {}))

    def open(self) -> list[tuple[str, str, Json]]:
        """What nobody was told of yet; the last wishes only once nothing else is left."""
        left = [request for request in self.requests if request[1] not in self.told]
        return [request for request in left if not request[1].startswith("k-last")] or left

    def put(self, controller: Controller, verb: str, key: str, body: Json) -> None:
        answer = controller.operate(verb, key, "sim", f"asked by {key}", body)
        told = {name: value for name, value in answer.items() if name != "generation"}
        if self.told.setdefault(key, told) != told:
            raise Violation(f"{key} was answered {self.told[key]}, then {told}")


@contextmanager
def short_times() -> Iterator[None]:
    """Snapshots and second tries come often enough to be met within a history."""
    with ExitStack() as stack:
        for module, name, value in (
            (controller_module, "SNAPSHOT_EVERY", 20),
            (controller_module, "SWEEP_EVERY", 10.0),
            (decide_module, "INGEST_PAUSE", 5.0),
            (decide_module, "INGEST_LONGEST", 20.0),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


@short_times()
def history(seed: int, mutant: str = "") -> int:
    """Run one history.

    Returns:
        Number of crashes in it.

    Raises:
        Violation: says which invariant broke.
    """
    rng = random.Random(seed)
    dice, asked = Dice(rng), Asked(rng)
    world, wall, monotonic = World(), FakeClock(1e6), FakeClock(0.0)
    serving = world.serving = LateServing(rng, mutant, lambda: length(first))
    versions = [f"m-p-{number:05d}-{attempt}" for number in range(1, 30) for attempt in (1, 2)]
    bad = {version for version in versions[2:] if rng.random() < 0.3}
    damaged = {version for version in versions if rng.random() < 0.1}
    for replica in serving.replicas:
        replica.errors |= bad
        replica.refuses |= damaged
    world.training.bad |= {version.removeprefix("m-") for version in versions if rng.random() < 0.2}
    verdicts = {version: "refuse" for version in versions[2:] if rng.random() < 0.15}
    unscored = {version for version in versions[2:] if rng.random() < 0.1}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        url = f"sqlite:///{folder}/journal.db"
        first = Journal(url, "p")
        crash_rate, fault_rate = rng.choice((0.0, 0.01, 0.05, 0.15)), rng.choice((0.0, 0.0, 0.02, 0.1))
        alive: list[Controller | None] = [None, None]

        def rooms() -> Any:
            # Outcomes that were not polled die with the process; what was done stays done.
            world.ingest = FakeIngest(commits=world.ingest.commits, bad=world.ingest.bad)
            world.evaluation = FakeEvaluation(verdicts, bad=unscored)
            world.monitoring = MoodyMonitoring(rng, lambda: dice.calm, versions)
            plain = world.rooms()
            return type(plain)(*(Crashing(getattr(plain, name), dice) for name in plain.__slots__))

        def born() -> Controller:
            journal = CrashingJournal(first, dice, mutant)
            clock = SteadyClock(journal.newest(), wall, monotonic)
            fresh = Controller(journal, rooms(), "/root", clock, "sim")
            mutate(fresh, mutant)
            return fresh

        def use(index: int, work: Callable[[Controller], object]) -> None:
            try:
                if alive[index] is None:
                    alive[index] = born()
                work(alive[index])  # type: ignore[arg-type]
            except (Crash, FencedError, OperationalError):
                alive[index] = None

        landed = 0
        for step in range(STEPS + CALM):
            ending = step >= STEPS
            if step == STEPS:
                # Whatever was paused or stopped goes on, so that there is an end to reach.
                asked.requests += [("start", "k-last-start", asked.body()), ("resume", "k-last-resume", {})]
                world.ingest.bad.clear()
            # Once everybody was told: until then the one that is alive may be fenced and not know it.
            calm = ending and not asked.open() and not world.training.actors
            if calm and settled(alive[0], len(world.source.landed)):
                break
            dice.crash, dice.fault = (0.0, 0.0) if ending else (crash_rate, fault_rate)
            dice.calm = ending
            wall.now += 1 + (rng.choice((-3600, -30, 30, 3600)) if rng.random() < 0.02 else 0)
            monotonic.now += 1
            serving.tick()
            for replica in serving.replicas:
                if not ending and rng.random() < 0.01:
                    replica.restart(serving.stored)
                replica.serve(400)
            if not ending and rng.random() < 0.01:
                serving.deployed = False
            if step % 40 == 0 and landed < VERSIONS + 2:
                world.land(*(range(3) if landed == 0 else [landed + 2]))
                landed += 1
            if not ending and rng.random() < 0.02:
                world.ingest.bad ^= {f"day-{rng.randrange(6):03d}"}
            if not ending and rng.random() < 0.05:
                asked.something(step)
            index = 0 if ending else rng.choice((0, 0, 0, 1))
            for verb, key, request in asked.open() if ending else asked.requests[-12:]:
                if ending or rng.random() < 0.3:
                    use(index, lambda c, v=verb, k=key, r=request: asked.put(c, v, k, r))
            use(index, lambda c: c.step())
        last = alive[0]
        if last is None:
            raise Violation("no controller is left")
        check(last, world, serving, bad, asked)
        first.close()
    return dice.crashes


def length(journal: Journal) -> int:
    """Number of events."""
    with journal._engine.connect() as connection:
        return journal._head(connection)[0]


def settled(last: Controller | None, landed: int) -> bool:
    """Whether nothing is left to be done; a calm world must get there."""
    if last is None or last.state.stopped or len(last.state.partitions) < landed:
        return False
    state = last.state
    idle = not state.busy and state.ingest is None and (state.wanted is None or bool(state.waiting))
    written = state.settled == state.generation or not state.champion
    return idle and not last.faults and state.converged == state.generation and written


def check(last: Controller, world: World, serving: LateServing, bad: set[str], asked: Asked) -> None:
    """What must hold at the end of every history."""
    journal, state = last._journal, last.state
    verify(journal)
    events = journal.read()
    if recover(journal) != state:
        raise Violation("the controller's state is not the journal's")
    if not settled(last, len(world.source.landed)):
        raise Violation(
            f"work was left undone: {state.busy or state.wanted or last.faults or 'ingest, serving'}"
        )
    check_events(events, bad, asked)
    state, born = State(), {0: 0}
    for event in events:
        check_evidence(state, event)
        state = fold(state, event)
        born.setdefault(state.generation, event.seq)
    if any(written < born[generation] for generation, written in serving.steered):
        raise Violation("replicas were sent a document that no journal held yet")
    committed = [e.data["partition"]["name"] for e in events if e.kind == "partition_committed"]
    if len(committed) != len(set(committed)):
        raise Violation("a partition was used twice")
    if world.training.actors:
        raise Violation(f"runs that nobody waits for hold their processors: {sorted(world.training.actors)}")
    if serving.stored is None or serving.stored.champion != last.document.champion or not serving.deployed:
        raise Violation("a replica that starts now would not serve the journal's champion")
    for replica in serving.replicas:
        for part in (*replica.past, replica.history):
            orders = [document.order for document in part]
            if orders != sorted(orders):
                raise Violation(f"replica {replica.name} went back to an older document")
        if replica.document is None or replica.document.champion != last.document.champion:
            raise Violation(f"replica {replica.name} does not serve the journal's champion")
    taken = [
        document
        for replica in serving.replicas
        for part in (*replica.past, replica.history)
        for document in part
    ]
    meanings: dict[int, set[Any]] = {}
    for d in taken:
        meanings.setdefault(d.generation, set()).add((d.rollout, d.split, d.champion))
    if any(len(found) > 1 for found in meanings.values()):
        raise Violation("one generation had two meanings")


def check_evidence(state: State, event: Event) -> None:
    """What monitoring may do: nothing trains on data that are held, a champion goes back to one it had."""
    data = event.data
    first = event.kind == "run_started" and data["request"]["attempt"] == 1
    if event.kind == "run_started":
        wait, names = data["request"]["spec"]["label"]["matures_after"], data["request"]["partitions"]
        if any(state.partitions[name].last_event + wait > state.watermark for name in names):
            raise Violation("a run learns from rows whose labels may not be final")
    if first and data["trigger"] != "operator" and state.hold:
        raise Violation(f"a run began by {data['trigger']} on data that were held: {state.hold}")
    if event.kind == "rolled_back" and data["by"] in ("watch", "diagnosis"):
        if not state.previous or data["version"] != state.champion:
            raise Violation(
                f"{data['by']} rolled {data['version']} back, and there was nothing to go back to"
            )
        if data["by"] == "watch" and (state.watch is None or len(state.watch.blocks) < 2):
            raise Violation("a champion went back without blocks that say so")


def check_events(events: list[Event], bad: set[str], asked: Asked) -> None:
    """What every journal must tell: effects once for each key, promotions after gates, steps after steps."""
    champion, accepted, promoted, live = "", set(), [], True
    effects: set[tuple[str, str]] = set()
    for event in events:
        data, reason = event.data, str(event.data.get("reason", ""))
        if reason.startswith("asked by ") and event.kind != "run_started":
            if (event.kind, reason) in effects:
                raise Violation(f"{reason}: {event.kind} was journaled twice")
            effects.add((event.kind, reason))
            if not asked.told.get(reason.removeprefix("asked by "), {"ok": True})["ok"]:
                raise Violation(f"{reason}: it was refused, and had an effect")
        if event.kind == "gate_decided" and data["decision"]["verdict"] == "accept":
            accepted.add(data["decision"]["version"])
        if event.kind in ("rollout_step", "promoted") and data.get("by", "rollout") == "rollout":
            if not live:
                raise Violation(f"event {event.seq} went on before the step before it was live everywhere")
            live = False
        live = live or event.kind in ("converged", "rollout_started")
        if event.kind == "promoted":
            if data["version"] not in accepted:
                raise Violation(f"{data['version']} was promoted, and no gate had accepted it")
            if data["version"] in bad and champion and data["by"] == "rollout":
                raise Violation(f"{data['version']} fails on every request, and was promoted")
            promoted.append(data["version"])
            champion = data["version"]
    if len(promoted) != len(set(promoted)):
        raise Violation("a version was promoted twice")
    done = {reason.removeprefix("asked by ") for _, reason in effects}
    for key, told in asked.told.items():
        if told["ok"] and key not in done and not key.endswith("start"):
            raise Violation(f"{key} was acknowledged, and nothing came of it")


def outcome(seed: int, mutant: str = "") -> tuple[int, str]:
    """(crashes, violation) of one history; the violation is empty if there was none."""
    try:
        return history(seed, mutant), ""
    except (Violation, AssertionError, KeyError, JournalError) as error:
        return 0, f"seed {seed}: {type(error).__name__}: {error}"


def many(seeds: Iterable[int], mutant: str = "") -> tuple[int, list[str]]:
    """(crashes, violations) of many histories, on all cores."""
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(partial(outcome, mutant=mutant), seeds, chunksize=8))
    return sum(crashes for crashes, _ in found), [text for _, text in found if text]


def main() -> None:
    """Run histories and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--mutant", choices=MUTANTS, default="")
    arguments = parser.parse_args()
    crashes, violations = many(range(arguments.seeds), arguments.mutant)
    print(*violations[:20], sep="\n")
    print(
        json.dumps(
            {
                "seeds": arguments.seeds,
                "mutant": arguments.mutant,
                "crashes": crashes,
                "violations": len(violations),
            }
        )
    )


if __name__ == "__main__":
    main()
