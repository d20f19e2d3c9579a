"""The controller of one pipeline: a plain class that is stepped.

Each step looks at every room, turns what it sees into events by `decide`, journals them, and then
does what the state asks for. It acts only after the commit, and always from the state, never from
the transition: whatever a crash left undone is found again by the next step. It holds no state of
its own that a restart would miss: what it has started in this process is only remembered so as not
to be started twice, and the doors behind it are idempotent.

A room that raises holds up nobody else: its fault is noted in `faults` and it is asked again at the
next step. What the journal raises goes to the caller, who must make a new controller: nothing in
memory is to be trusted then.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from ctrain.controller.decide import decide, due
from ctrain.controller.fold import fold
from ctrain.controller.journal import Event, Journal, Operation
from ctrain.controller.observations import (
    Command,
    Decision,
    EvaluationFailed,
    Ingested,
    IngestFailed,
    Judged,
    Looked,
    Observation,
    Operated,
    ReleaseRun,
    RunSeen,
    Seen,
    Settled,
    StartEvaluation,
    StartIngest,
    StartRun,
    StartWindow,
    Tick,
    Windowed,
)
from ctrain.controller.quality import known_facts
from ctrain.controller.rooms import Rooms
from ctrain.controller.state import State, landings
from ctrain.errors import FencedError, MissingArtifactError, TamperedError
from ctrain.records import (
    EvaluationRequest,
    Failure,
    IngestRequest,
    Json,
    LiveDocument,
    Sighting,
    WindowRequest,
    canonical,
    from_json,
    to_json,
)

log = logging.getLogger("ctrain.controller")

SNAPSHOT_EVERY = 200
"""Events between two snapshots."""

SETTLE_AFTER = 10.0
"""Seconds of calm before the live document goes into Serve's own configuration: that write doubles the
99 % latency for its second, so it keeps away from decisions, and several of them share one."""

SWEEP_EVERY = 60.0
"""Seconds between two looks for runs that nobody waits for: a release that failed is not remembered."""

APPLY_AGAIN = 1.0
"""Seconds after which a document that was not taken everywhere is broadcast again."""


class Controller:
    """Steps one pipeline. Not thread-safe: one caller at a time.

    Args:
        journal: The pipeline's journal; the epoch is raised at once, so an older controller is fenced.
        rooms: Doors to the rooms.
        root: Root's path, for the requests that rooms get.
        clock: Seconds since 1970, never going back.
        owner: Who writes, for people who read the lease.
        told: Hears of every event once it is journaled, for metrics; must not raise.
    """

    def __init__(
        self,
        journal: Journal,
        rooms: Rooms,
        root: str,
        clock: Callable[[], float],
        owner: str,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._told = told
        self._journal, self._rooms, self._root, self._clock = journal, rooms, root, clock
        self.epoch = journal.acquire(owner)
        self.state = recover(journal)
        self.faults: dict[str, str] = {}
        """What keeps a room from its work now, by door."""
        self.progress = ""
        """The run's own word on how far it is."""
        self._snapshot_at = self.state.seq
        self._started: set[str] = set()
        self._swept = float("-inf")
        self._looked = float("-inf")
        self._applied: tuple[int, int] = (0, 0)
        self._applied_at = float("-inf")
        self._deployed = False
        self._removed = False
        self._calm_since = clock()

    @property
    def document(self) -> LiveDocument:
        """What every replica should serve now."""
        return self.state.document(self.epoch)

    @property
    def gone(self) -> bool:
        """Whether the pipeline is stopped and its application deleted."""
        return self.state.stopped and self._removed

    def replace_rooms(self, rooms: Rooms) -> None:
        """Go on with other doors, those of a new spec; what was begun behind the old ones begins again."""
        if rooms is not self._rooms:
            self._rooms, self._deployed = rooms, False
            self._started.clear()

    def operate(self, verb: str, key: str, by: str, reason: str, body: Json | None = None) -> Json:
        """Do what a person asks, once for each key.

        Returns:
            `{"ok": True, "status": 200, "generation": n}`, or `{"ok": False, "status": 409, "error": why}`;
            the same answer for every repetition of the key.

        Raises:
            KeyReusedError: if the key came with another request before.
            FencedError: if another controller has taken over.
        """
        request: Json = {"verb": verb, "reason": reason, "body": body or {}}
        try:
            canonical(request)
        except ValueError as error:
            return {"ok": False, "status": 422, "error": f"the request cannot be journaled: {error}"}
        known = self._journal.result_of(key, request)
        if known is not None:
            return {**known, "generation": self.state.generation}
        decision = self._decide(Operated(verb, by, reason, body or {}))
        result: Json
        if decision.refusal:
            result = {"ok": False, "status": decision.status, "error": decision.refusal}
            result["generation"] = self.state.generation
            self._commit(Decision(), Operation(key, request, result))
            return result
        result = {"ok": True, "status": 200, "verb": verb, "after": self.state.seq}
        self._commit(decision, Operation(key, request, result))
        self._guard("serving", self._steer)
        return {**result, "generation": self.state.generation}

    def step(self) -> None:
        """Look at every room once, and do what follows.

        Raises:
            FencedError: if another controller has taken over; this one must not be stepped again.
        """
        self._journal.check(self.epoch)
        if not self.state.spec:
            return
        self._guard("serving", self._steer)
        if not self.state.stopped:
            for door, see in self._doors().items():
                self._guard(door, partial(self._see, see))
        if self._clock() - self._swept >= SWEEP_EVERY:
            self._guard("sweep", partial(self._sweep, str(self.state.spec["pipeline"])))
        for command in due(self.state):
            self._guard(command.key, partial(self._execute, command))
        if self.faults:
            asked = {command.key for command in due(self.state)} | {"serving", "sweep", *self._doors()}
            self.faults = {door: fault for door, fault in self.faults.items() if door in asked}
        if self.state.seq - self._snapshot_at >= SNAPSHOT_EVERY:
            self._journal.save_snapshot(self.epoch, self.state.seq, to_json(self.state))
            self._snapshot_at = self.state.seq

    # --- see ---

    def _doors(self) -> dict[str, Callable[[], Iterable[Observation]]]:
        return {
            "replicas": self._see_replicas,
            "clock": self._see_clock,
            "source": self._see_source,
            "ingest": self._see_ingest,
            "training": self._see_run,
            "evaluation": self._see_evaluation,
            "monitoring": self._see_windows,
        }

    def _see(self, see: Callable[[], Iterable[Observation]]) -> None:
        """Commit what a door shows, and steer at once: a failing challenger must not wait for the rest."""
        for observation in see():
            try:
                self._commit(self._decide(observation))
            except _UNFIT as error:
                log.exception("%s cannot be journaled", type(observation).__name__)
                self._commit(self._decide(_as_failure(observation, error)))
            self._guard("serving", self._steer)

    def _see_replicas(self) -> Iterator[Observation]:
        observed = self._rooms.serving.observe()
        if not observed.deployed:
            self._deployed = False  # somebody deleted the application: the next steer creates it again
        yield Seen(observed)

    def _see_clock(self) -> Iterator[Observation]:
        yield Tick()

    def _see_source(self) -> Iterator[Observation]:
        found = self._rooms.source.poll()
        if isinstance(found, Failure):
            yield Looked((Sighting("", None, f"cannot be read: {found.error}"),))
        elif found is not None:
            yield Looked(tuple(found))
        now = self._clock()
        if now - self._looked >= self.state.pipeline_spec().source.poll:
            self._looked = now
            self._rooms.source.start({name: fact.sha256 for name, fact in self.state.partitions.items()})

    def _see_ingest(self) -> Iterator[Observation]:
        for landed in self._rooms.ingest.poll():
            if isinstance(landed, Failure):
                yield IngestFailed(landed.key, landed.error)
            else:
                yield Ingested(*landed)

    def _see_run(self) -> Iterator[Observation]:
        if self.state.run is None or self.state.run.request.run_id not in self._started:
            return
        status = self._rooms.training.poll(self.state.run.request.run_id)
        self.progress = status.progress
        version = None
        if status.state == "finished":
            try:
                version = self._rooms.registry.read(status.version)
            except (MissingArtifactError, ValueError) as error:  # gone, or not what its hash says
                status = replace(status, state="failed", error=str(error))
            except OSError as error:  # storage is away: asked again until the run's time is over
                status = replace(status, state="running", progress=f"its version cannot be read: {error}")
        yield RunSeen(status, version)

    def _see_evaluation(self) -> Iterator[Observation]:
        for judged in self._rooms.evaluation.poll():
            if isinstance(judged, Failure):
                yield EvaluationFailed(judged.key.split("-", 2)[2], judged.error)
            else:
                yield Judged(judged[1])

    def _see_windows(self) -> Iterator[Observation]:
        for windowed in self._rooms.monitoring.poll():
            if isinstance(windowed, Failure):
                yield Windowed(self.state.windowing, None, windowed.error)
            else:
                yield Windowed(windowed[1].end, windowed[1])

    def _guard(self, door: str, work: Callable[[], None]) -> None:
        """Let a door's fault be its own; the journal's goes on to the caller."""
        try:
            work()
        except (FencedError, SQLAlchemyError):
            raise
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            if self.faults.get(door) != fault:
                log.exception("%s failed; it is asked again", door)
            self.faults[door] = fault
        else:
            self.faults.pop(door, None)

    # --- decide and journal ---

    def _decide(self, observation: Observation) -> Decision:
        return decide(self.state, observation, self._now())[0]

    def _now(self) -> float:
        return max(self._clock(), self.state.at)

    def _commit(self, decision: Decision, operation: Operation | None = None) -> None:
        if not decision.events and operation is None:
            return
        folded = [self.state]
        events = self._journal.append(
            self.epoch,
            decision.events,
            self._now(),
            operation,
            # An event that cannot be folded would end every later start, so it must not stand.
            accept=lambda written: folded.append(functools.reduce(fold, written, self.state)),
        )
        self.state = folded[-1]
        for event in events:
            log.info("%s %s", event.kind, event.data.get("reason", ""))
            self._told(event)

    # --- do ---

    def _steer(self) -> None:
        """See that serving follows the live document: cheap when it does."""
        state, serving, now = self.state, self._rooms.serving, self._clock()
        if not state.spec:
            return
        if state.stopped:
            if not self._removed:
                serving.remove()
                self._removed, self._deployed = True, False
            return
        self._removed = False
        document = self.document
        if not self._deployed:
            serving.deploy(document)
            self._deployed = True
        lagging = state.converged < state.generation
        if document.order != self._applied or (lagging and now - self._applied_at >= APPLY_AGAIN):
            self._journal.check(self.epoch)  # a step may have been long: a newer controller may steer by now
            serving.apply(document)
            self._applied, self._applied_at = document.order, now
        if lagging or state.rollout is not None or not state.champion:
            self._calm_since = now
        elif state.settled < state.generation and now - self._calm_since >= SETTLE_AFTER:
            serving.settle(document)
            self._commit(self._decide(Settled(state.generation)))

    def _sweep(self, pipeline: str) -> None:
        """End runs that nobody waits for, whoever left them."""
        running = self.state.run.request.run_id if self.state.run is not None else ""
        for run_id in self._rooms.training.running(pipeline):
            if run_id != running:
                self._rooms.training.release(run_id)
        self._swept = self._clock()

    def _execute(self, command: Command) -> None:
        if command.key in self._started:
            return
        state = self.state
        name = str(state.spec["pipeline"])
        match command:
            case StartIngest(key, partitions):
                request = IngestRequest(key, name, self._root, state.spec, state.code, partitions)
                self._rooms.ingest.start(request)
            case StartRun(_, run):
                self._rooms.training.start(replace(run, root=self._root))
            case ReleaseRun(_, run_id):
                self._rooms.training.release(run_id)
            case StartEvaluation(key, candidate, champion):
                self._rooms.evaluation.start(
                    EvaluationRequest(
                        key,
                        name,
                        self._root,
                        state.spec,
                        candidate,
                        champion,
                        state.code,
                        state.first,
                        state.record,
                        state.uses,
                        landings(state),
                    )
                )
            case StartWindow(key, start, end):
                self._rooms.monitoring.start(
                    WindowRequest(
                        key,
                        name,
                        self._root,
                        state.spec,
                        state.champion,
                        start,
                        end,
                        state.windowing_watermark,
                        state.code,
                        known_facts(state, end),
                    )
                )
        # Only now: a start that raised is tried again by the next step.
        self._started.add(command.key)
        if len(self._started) > 1000:
            self._started &= {command.key for command in due(state)}


def recover(journal: Journal) -> State:
    """The state as the journal tells it: newest snapshot, then the events after it."""
    snapshot = journal.snapshot()
    state = from_json(State, snapshot.state) if snapshot is not None else State()
    for event in journal.read(after=state.seq):
        state = fold(state, event)
    return state


def verify(journal: Journal) -> int:
    """Check the chain of events, and that the snapshot is what they fold to.

    Returns:
        Number of events.

    Raises:
        TamperedError: names the first event that was altered, or the snapshot.
    """
    count = journal.verify()
    snapshot = journal.snapshot()
    if snapshot is not None:
        state = State()
        for event in journal.read(limit=snapshot.seq):
            state = fold(state, event)
        if from_json(State, snapshot.state) != state:
            raise TamperedError(
                journal.pipeline, snapshot.seq, "does not fold to the snapshot that is kept of it"
            )
    return count


_UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
"""What `decide`, `fold` and the journal raise for an outcome that no event can hold."""


def _as_failure(observation: Observation, error: Exception) -> Observation:
    """An outcome that cannot be journaled, as the failure of the work that gave it."""
    text = f"its outcome cannot be journaled: {type(error).__name__}: {ascii(str(error))[:500]}"
    match observation:
        case Looked():
            return Looked((Sighting("", None, text),))
        case Ingested(key=key):
            return IngestFailed(key, text)
        case RunSeen(status=status):
            return RunSeen(replace(status, state="failed", error=text, retryable=False))
        case Judged(decision=decision):
            return EvaluationFailed(decision.version, text)
        case Windowed(end=end):
            return Windowed(end, None, text)
    raise error
