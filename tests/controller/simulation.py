"""Simulated histories: the real controller, policy and journal, with fakes, crashes and wrong clocks.

    python tests/controller/simulation.py --seeds 5000 [--mutant no_serve_fence]

Two controllers take turns; each may be killed before or after any call to a room or the journal, and
an older one may wake up again. Documents are delivered late and twice. At the end of a history
everything that was asked for must have happened once, and serving must stand where the journal does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from factories import spec
from fakes import FakeClock, FakeEvaluation, FakeIngest, FakeMonitoring, FakeReplica, FakeServing, World

from ctrain.controller import controller as controller_module
from ctrain.controller.clock import SteadyClock
from ctrain.controller.controller import Controller, recover
from ctrain.controller.journal import Event, Journal, Operation
from ctrain.errors import FencedError
from ctrain.records import LiveDocument

MUTANTS = (
    "no_serve_fence",
    "no_journal_fence",
    "edge_triggered",
    "act_before_commit",
    "no_idempotency_key",
    "no_observed_generation",
)
STEPS = 160
controller_module.SNAPSHOT_EVERY = 20
CALM = 400
"""Steps without crashes in which everything that was asked for must come to its end."""

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A history is no test of the disk."""
VERSIONS = 3


class Crash(Exception):
    """The process was killed here."""


class Violation(AssertionError):
    """A history broke an invariant."""


class Dice:
    """Crashes with some probability at every point that is asked about."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.crash, self.crashes = rng, 0.0, 0

    def point(self) -> None:
        if self.rng.random() < self.crash:
            self.crashes += 1
            raise Crash


class Crashing:
    """A room whose every call may be the last, before it or after it."""

    def __init__(self, room: Any, dice: Dice) -> None:
        self._room, self._dice = room, dice

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._room, name)

        def call(*args: Any) -> Any:
            self._dice.point()
            result = method(*args)
            self._dice.point()
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

    def append(self, epoch: int, entries: Any, at: float, operation: Operation | None = None) -> list[Event]:
        self._dice.point()
        if self._mutant == "no_journal_fence":
            with self._engine.connect() as connection:
                epoch = self._epoch(connection)
        if self._mutant == "no_idempotency_key":
            operation = None
        events = super().append(epoch, entries, at, operation)
        self._dice.point()
        return events


class LateServing(FakeServing):
    """Documents reach a replica now, later, or twice; every replica also pulls in the end."""

    def __init__(self, rng: random.Random, mutant: str) -> None:
        super().__init__(
            [FakeReplica("a", mutant != "no_serve_fence"), FakeReplica("b", mutant != "no_serve_fence")]
        )
        self.rng, self.mail = rng, []  # type: ignore[var-annotated]

    def apply(self, document: LiveDocument) -> None:
        for replica in self.replicas:
            for _ in range(self.rng.choice((0, 1, 1, 1, 2))):
                self.mail.append((self.rng.choice((0, 0, 1, 5, 30)), replica, document))

    def tick(self) -> None:
        due = [item for item in self.mail if item[0] <= 0]
        self.mail = [(age - 1, replica, document) for age, replica, document in self.mail if age > 0]
        self.rng.shuffle(due)
        for _, replica, document in due:
            replica.take(document)


def mutate(controller: Controller, mutant: str) -> None:
    """Break one controller on purpose."""
    if mutant == "edge_triggered":
        # Acts on the transition only: what a crash left undone is never found again.
        controller._started |= {command.key for command in controller_module.due(controller.state)}
        controller._applied, controller._applied_at = controller.document.order, float("inf")
    if mutant == "no_observed_generation":
        decide_now = controller._decide

        def hasty(observation: Any) -> Any:
            state = controller.state
            if state.rollout is not None and state.rollout.since == 0.0:
                rollout = replace(state.rollout, since=state.at - 100.0)
                controller.state = replace(state, rollout=rollout)
            decision = decide_now(observation)
            controller.state = state
            return decision

        controller._decide = hasty  # type: ignore[method-assign]
    if mutant == "act_before_commit":
        commit = controller._commit

        def early(decision: Any, operation: Any = None) -> Any:
            before = controller.state
            for number, entry in enumerate(decision.events, before.seq + 1):
                event = Event(number, controller.epoch, controller._now(), entry.kind, entry.data, "", "")
                controller.state = controller_module.fold(controller.state, event)
            if controller.state is not before:
                controller._steer_now()  # type: ignore[attr-defined]
            controller.state = before
            return commit(decision, operation)

        def steer_now() -> None:
            controller._rooms.serving.apply(controller.document)

        controller._steer_now = steer_now  # type: ignore[attr-defined]
        controller._commit = early  # type: ignore[method-assign]


def history(seed: int, mutant: str = "") -> int:
    """Run one history.

    Returns:
        Number of crashes in it.

    Raises:
        Violation: says which invariant broke.
    """
    rng = random.Random(seed)
    dice = Dice(rng)
    world, wall, monotonic = World(), FakeClock(1e6), FakeClock(0.0)
    serving = world.serving = LateServing(rng, mutant)
    bad = {f"m-p-{number:05d}-1" for number in range(2, 12) if rng.random() < 0.4}
    for replica in serving.replicas:
        replica.errors |= bad
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        url = f"sqlite:///{folder}/journal.db"
        first = Journal(url, "p")
        crash_rate = rng.choice((0.0, 0.01, 0.05, 0.15))
        alive: list[Controller | None] = [None, None]

        def rooms() -> Any:
            # Outcomes that were not polled die with the process; what was done stays done.
            world.ingest = FakeIngest(commits=world.ingest.commits)
            world.evaluation, world.monitoring = FakeEvaluation(), FakeMonitoring()
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
            except (Crash, FencedError):
                alive[index] = None

        body = {"spec": spec().to_json(), "code": ""}
        asked = [("start", "k-start", body)]
        landed = 0
        for step in range(STEPS + CALM):
            ending = step >= STEPS
            if ending and settled(alive[0], len(world.source.landed)):
                break
            dice.crash = 0.0 if ending else crash_rate
            wall.now += 1 + (rng.choice((-3600, -30, 30, 3600)) if rng.random() < 0.02 else 0)
            monotonic.now += 1
            serving.tick()
            for replica in serving.replicas:
                replica.serve(400)
            if step % 40 == 0 and landed < VERSIONS + 2:
                world.land(*(range(3) if landed == 0 else [landed + 2]))
                landed += 1
            if step == 70:
                asked.append(("retrain", "k-retrain", {}))
            index = 0 if ending else rng.choice((0, 0, 0, 1))
            for verb, key, request in asked:
                if rng.random() < 0.3 or ending:
                    use(index, lambda c, v=verb, k=key, r=request: c.operate(v, k, "sim", "simulated", r))
            use(index, lambda c: c.step())
        last = alive[0]
        if last is None:
            raise Violation("no controller is left")
        check(last, world, serving, bad, len(asked))
        first.close()
    return dice.crashes


def settled(last: Controller | None, landed: int) -> bool:
    """Whether nothing is left to be done; a calm world must get there."""
    if last is None or len(last.state.partitions) < landed:
        return False
    state = last.state
    idle = not state.busy and state.ingest is None and state.wanted is None
    return idle and state.converged == state.generation == state.settled


def check(last: Controller, world: World, serving: LateServing, bad: set[str], asked: int) -> None:
    """What must hold at the end of every history."""
    journal, state = last._journal, last.state
    journal.verify()
    events = journal.read()
    if recover(journal) != state:
        raise Violation("the controller's state is not the journal's")
    if not state.champion:
        raise Violation("nothing serves")
    if state.champion in bad:
        raise Violation(f"{state.champion} fails on every request, and serves")
    if [event.data.get("trigger") for event in events if event.kind == "retrain_wanted"].count(
        "operator"
    ) != 1:
        raise Violation("a retraining that was asked for once was journaled another number of times")
    promoted = [event.data["version"] for event in events if event.kind == "promoted"]
    if len(promoted) != len(set(promoted)):
        raise Violation("a version was promoted twice")
    committed = [e.data["partition"]["name"] for e in events if e.kind == "partition_committed"]
    if len(committed) != len(set(committed)):
        raise Violation("a partition was used twice")
    if state.run is not None or state.evaluating or state.rollout is not None or state.ingest is not None:
        raise Violation(f"work was left undone: {state.busy or 'ingest'}")
    live = True
    for event in events:
        if event.kind in ("rollout_step", "promoted") and event.data.get("by", "rollout") == "rollout":
            if not live:
                raise Violation(f"event {event.seq} went on before the step before it was live everywhere")
            live = False
        live = live or event.kind in ("converged", "rollout_started")
    known: set[tuple[int, int]] = set()
    splits = set()
    for replica in serving.replicas:
        orders = [document.order for document in replica.history]
        if orders != sorted(orders):
            raise Violation(f"replica {replica.name} went back to an older document")
        if replica.document is None or replica.document.slots.get("champion") != last.document.champion:
            raise Violation(f"replica {replica.name} does not serve the journal's champion")
        known |= set(orders)
        splits |= {(d.generation, d.rollout, d.split, d.champion) for d in replica.history}
    by_generation: dict[int, set[Any]] = {}
    for generation, *rest in splits:
        by_generation.setdefault(generation, set()).add(tuple(rest))
    if any(len(documents) > 1 for documents in by_generation.values()):
        raise Violation("one generation had two meanings")


def outcome(seed: int, mutant: str = "") -> tuple[int, str]:
    """(crashes, violation) of one history; the violation is empty if there was none."""
    try:
        return history(seed, mutant), ""
    except (Violation, AssertionError, KeyError) as error:
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
    print(violations[:5])
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
