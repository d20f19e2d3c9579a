"""The controller of one pipeline: a plain class that is stepped.

Each step looks at every room, turns what it sees into events by `decide`, journals them, and then
does what the state asks for. It acts only after the commit, and always from the state, never from
the transition: whatever a crash left undone is found again by the next step. It holds no state of
its own that a restart would miss: what it has started in this process is only remembered so as not
to be started twice, and the doors behind it are idempotent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from ctrain.controller.decide import (
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
    decide,
    due,
)
from ctrain.controller.journal import Event, Journal, Operation
from ctrain.controller.rooms import Rooms
from ctrain.controller.state import State, fold
from ctrain.records import (
    EvaluationRequest,
    Failure,
    IngestRequest,
    Json,
    LiveDocument,
    Sighting,
    WindowRequest,
    from_json,
    to_json,
)

log = logging.getLogger("ctrain.controller")

SNAPSHOT_EVERY = 200
"""Events between two snapshots."""

SETTLE_AFTER = 10.0
"""Seconds of calm before the live document goes into Serve's own configuration: that write doubles the
99 % latency for its second, so it keeps away from decisions, and several of them share one."""

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
        self._snapshot_at = self.state.seq
        self._started: set[str] = set()
        self._looked = float("-inf")
        self._applied: tuple[int, int] = (0, 0)
        self._applied_at = float("-inf")
        self._deployed = False
        self._calm_since = clock()
        self.progress = ""
        """The run's own word on how far it is."""

    @property
    def document(self) -> LiveDocument:
        """What every replica should serve now."""
        return self.state.document(self.epoch)

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
        known = self._journal.result_of(key, request)
        if known is not None:
            return {**known, "generation": self.state.generation}
        decision = self._decide(Operated(verb, by, reason, body or {}))
        result: Json
        if decision.refusal:
            result = {
                "ok": False,
                "status": 409,
                "error": decision.refusal,
                "generation": self.state.generation,
            }
            self._commit(Decision(), Operation(key, request, result))
            return result
        result = {"ok": True, "status": 200, "verb": verb, "after": self.state.seq}
        self._commit(decision, Operation(key, request, result))
        self._steer()
        return {**result, "generation": self.state.generation}

    def step(self) -> None:
        """Look at every room once, and do what follows.

        Raises:
            FencedError: if another controller has taken over; this one must not be stepped again.
        """
        self._journal.check(self.epoch)
        if not self.state.spec or self.state.stopped:
            return
        for observation in self._observe():
            self._commit(self._decide(observation))
            self._steer()
        for command in due(self.state):
            self._execute(command)
        if self.state.seq - self._snapshot_at >= SNAPSHOT_EVERY:
            self._journal.save_snapshot(self.epoch, self.state.seq, to_json(self.state))
            self._snapshot_at = self.state.seq

    def reload(self) -> None:
        """Fold the journal again, after a step that raised: nothing in memory is to be trusted then."""
        self.state = recover(self._journal)

    # --- see ---

    def _observe(self) -> Iterator[Observation]:
        observed = self._rooms.serving.observe()
        if not observed.deployed:
            self._deployed = False  # somebody deleted the application: the next steer creates it again
        yield Seen(observed)
        yield Tick()
        now = self._clock()
        if now - self._looked >= self.state.pipeline_spec().source.poll:
            self._looked = now
            known = {name: fact.sha256 for name, fact in self.state.partitions.items()}
            yield self._look(known)
        for landed in self._rooms.ingest.poll():
            if isinstance(landed, Failure):
                yield IngestFailed(landed.key, landed.error)
            else:
                yield Ingested(*landed)
        if self.state.run is not None and self.state.run.request.run_id in self._started:
            status = self._rooms.training.poll(self.state.run.request.run_id)
            self.progress = status.progress
            version = self._rooms.registry.read(status.version) if status.version else None
            yield RunSeen(status, version)
        for judged in self._rooms.evaluation.poll():
            if isinstance(judged, Failure):
                yield EvaluationFailed(judged.key.split("-", 2)[2], judged.error)
            else:
                yield Judged(judged[1])
        for windowed in self._rooms.monitoring.poll():
            if isinstance(windowed, Failure):
                yield Windowed(self.state.windowing, None, windowed.error)
            else:
                yield Windowed(windowed[1].end, windowed[1])

    def _look(self, known: dict[str, str]) -> Looked:
        try:
            return Looked(tuple(self._rooms.source.look(known)))
        except OSError as error:  # a source that is away must not hold up what is under way
            return Looked((Sighting("", None, f"cannot be read: {error}"),))

    # --- decide and journal ---

    def _decide(self, observation: Observation) -> Decision:
        return decide(self.state, observation, self._now())[0]

    def _now(self) -> float:
        return max(self._clock(), self.state.at)

    def _commit(self, decision: Decision, operation: Operation | None = None) -> list[Event]:
        if not decision.events and operation is None:
            return []
        events = self._journal.append(self.epoch, decision.events, self._now(), operation)
        for event in events:
            self.state = fold(self.state, event)
            log.info("%s %s", event.kind, event.data.get("reason", ""))
            self._told(event)
        return events

    # --- do ---

    def _steer(self) -> None:
        """See that serving follows the live document: cheap when it does."""
        state, serving, now = self.state, self._rooms.serving, self._clock()
        if not state.spec:
            return
        if state.stopped:
            if self._deployed:
                serving.remove()
                self._deployed = False
            return
        document = self.document
        if not self._deployed:
            serving.deploy(document)
            self._deployed = True
        lagging = state.converged < state.generation
        if document.order != self._applied or (lagging and now - self._applied_at >= APPLY_AGAIN):
            serving.apply(document)
            self._applied, self._applied_at = document.order, now
        if lagging or state.rollout is not None or not state.champion:
            self._calm_since = now
        elif state.settled < state.generation and now - self._calm_since >= SETTLE_AFTER:
            serving.settle(document)
            self._commit(self._decide(Settled(state.generation)))

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
                    EvaluationRequest(key, name, self._root, state.spec, candidate, champion)
                )
            case StartWindow(key, start, end):
                self._rooms.monitoring.start(
                    WindowRequest(
                        key, name, self._root, state.spec, state.champion, start, end, state.watermark
                    )
                )
        # Only now: a start that raised is tried again by the next step.
        self._started.add(command.key)


def recover(journal: Journal) -> State:
    """The state as the journal tells it: newest snapshot, then the events after it."""
    snapshot = journal.snapshot()
    state = from_json(State, snapshot.state) if snapshot is not None else State()
    for event in journal.read(after=state.seq):
        state = fold(state, event)
    return state
