"""Weights of one replica: loaded, verified and warmed beside the live ones, then one reference changes.

Takes live documents; the highest (epoch, generation) wins. Gives `now`, the state that one request reads
once. Refuses weights whose hash is not the registry's, that are not finite, whose shapes or columns do not
fit or that fail their warm-up: those are recorded in `refused` and what serves keeps serving. Storage that
is away refuses nothing: the weights are simply not resident yet, and are asked for again.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import ValidationError

from ctrain.errors import CorruptArtifactError, StorageError, UserCodeError, WeightsError
from ctrain.records import LiveDocument, Slot, WeightSet
from ctrain.storage import Root
from ctrain.telemetry.log import logger

_log = logger("serving")

FAILURES = (Exception,)
"""What user code and loading may raise: anything. The replica lives on and the champion answers."""

REFUSALS = (WeightsError, CorruptArtifactError, UserCodeError, ValidationError)
"""What says that weights must not serve, however often they are read; anything else is tried again."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two tries to load what is not refused, doubled each time."""


class Model(Protocol):
    """Resident weights, ready to answer."""

    version: str
    sha256: str
    threshold: float
    columns: dict[str, Any]

    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        """One probability a row."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """What a replica serves: a request takes this reference once and keeps it to its end."""

    document: LiveDocument
    champion: Model | None = None
    challenger: Model | None = None
    previous: Model | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """Name for people by version id."""
    unasked: tuple[str, ...] = ()
    """Columns that the challenger requires and the champion's requests may lack."""
    schema: Any = None
    """What its requests are checked by: swapped with the weights, so that no request meets another's."""

    @property
    def shadow(self) -> Model | None:
        """What mirrored requests are scored by; None if nothing is, or it is not resident."""
        slots = {"challenger": self.challenger, "previous": self.previous}
        return slots.get(self.document.mirror)

    def challenger_can_score(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the rows hold what the challenger requires: null would pass for a missing number."""
        return not self.unasked or all(row.get(name) is not None for name in self.unasked for row in rows)


class Weights:
    """Resident models of one replica, and the one thread that loads.

    Args:
        pipeline: Name of the pipeline.
        root: Where live documents and models lie.
        load: Loads and verifies one slot; `load_model` outside of tests.
        schema_of: Gives the schema of requests before each change of `now`; raises if the version loaded
            last cannot serve.
        pause: Seconds until the first new try; for tests.
    """

    def __init__(
        self,
        pipeline: str,
        root: Root,
        load: Callable[[Root, Slot], Model] | None = None,
        schema_of: Callable[[Live], Any] = lambda live: None,
        pause: float = _FIRST_PAUSE,
    ) -> None:
        self._pipeline, self._root, self._pause = pipeline, root, pause
        self._load = load or load_model
        self._schema_of = schema_of
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stop = False
        self._models: dict[tuple[str, str], Model] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self.wanted = LiveDocument(pipeline, epoch=-1, generation=-1)
        self.now = Live(self.wanted)
        self._thread = threading.Thread(target=self._run, name="weights-loader", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loader thread runs."""
        return self._thread.is_alive()

    @property
    def resident(self) -> dict[str, str]:
        """sha256 of the weights in memory, by version id."""
        with self._lock:
            return dict(tuple(self._models))

    @property
    def refused(self) -> dict[str, str]:
        """Why a wanted version could not be loaded, by version id."""
        with self._lock:
            return {version: reason for (version, _), reason in self._refused.items()}

    def offer(self, document: LiveDocument) -> bool:
        """Take a document if it is newer than the newest one; never blocks on a load.

        If all weights it needs are resident, it is live when this returns.

        Returns:
            Whether it was newer.
        """
        if document.pipeline != self._pipeline:
            return False
        with self._lock:
            if document.order <= self.wanted.order:
                return False
            self.wanted = document
            self._refused.clear()
            try:
                self._apply()
            except FAILURES as error:  # the champion's columns make the schema
                self._refuse(document.champion, error)
        self._wake.set()
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until the wanted champion is resident or refused; False if the time is over."""
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                slot = self.wanted.champion
                if slot is None or _id(slot) in self._models or _id(slot) in self._refused:
                    return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)

    def close(self) -> None:
        """End the thread."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        pause: float | None = None  # nothing to try again: wait for a document
        while True:
            asked = self._wake.wait(pause)
            self._wake.clear()
            if self._stop:
                return
            try:
                complete = self._load_missing()
            except FAILURES:  # the loader outlives everything
                _log.exception("the loader failed", extra={"pipeline": self._pipeline})
                complete = False
            if complete:
                pause = None
            elif asked or pause is None:
                pause = self._pause
            else:
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _load_missing(self) -> bool:
        """Try each missing slot once; whether none is missing now."""
        self._prefer_storage()
        tried: set[tuple[str, str]] = set()
        while not self._stop and (slot := self._missing(tried)) is not None:
            tried.add(_id(slot))
            self._fetch(slot)
        return self._missing() is None

    def _prefer_storage(self) -> None:
        """An operator's document (epoch 0) counts only where no live document exists."""
        if self.wanted.epoch != 0:
            return
        with suppress(*FAILURES):
            stored = self._root.read_live(self._pipeline)
            if stored is not None:
                self.offer(stored)

    def _missing(self, tried: Collection[tuple[str, str]] = ()) -> Slot | None:
        with self._lock:
            for slot in self.wanted.slots.values():
                if not any(_id(slot) in done for done in (self._models, self._refused, tried)):
                    return slot
            return None

    def _fetch(self, slot: Slot) -> None:
        try:
            model = self._load(self._root, slot)
        except REFUSALS as error:
            with self._lock:
                self._refuse(slot, error)
            return
        except FAILURES as error:
            text = "not loaded, tried again: %s"
            _log.warning(text, _words(error), extra={"pipeline": self._pipeline, "version": slot.version})
            return
        with self._lock:
            self._models[_id(slot)] = model
            try:
                self._apply()
            except FAILURES as error:  # without it all was well
                self._refuse(slot, error)

    def _refuse(self, slot: Slot | None, error: Exception) -> None:
        """Leave a version out until a newer document comes. Lock held."""
        version = slot.version if slot is not None else ""
        _log.warning("refused: %s", _words(error), extra={"pipeline": self._pipeline, "version": version})
        if slot is not None:
            self._models.pop(_id(slot), None)
            self._refused[_id(slot)] = _words(error)

    def _apply(self) -> None:
        """Change `now` to the wanted document as far as its weights are resident. Lock held."""
        document = self.wanted
        held = {name: self._models.get(_id(slot)) for name, slot in document.slots.items()}
        if document.champion is not None and held["champion"] is None:
            return  # the old champion keeps serving, by its own document
        labels = {slot.version: slot.label for slot in document.slots.values()}
        champion, challenger = held.get("champion"), held.get("challenger")
        unasked = _unasked(champion, challenger)
        live = Live(document, champion, challenger, held.get("previous"), labels, unasked)
        self.now = replace(live, schema=self._schema_of(live))
        needed = {_id(slot) for slot in document.slots.values()}
        self._models = {name: model for name, model in self._models.items() if name in needed}


def _id(slot: Slot) -> tuple[str, str]:
    return (slot.version, slot.sha256)


def _unasked(champion: Model | None, challenger: Model | None) -> tuple[str, ...]:
    if champion is None or challenger is None:
        return ()
    asked = _required(champion)
    return tuple(name for name in _required(challenger) if name not in asked)


def _required(model: Model) -> list[str]:
    return [name for name, column in model.columns.items() if not column.get("nullable")]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


# --- the real models -----------------------------------------------------------------------------


class TorchModel:
    """Served weights of a model version with its view and encoder."""

    def __init__(self, network: Any, sha256: str) -> None:
        import torch

        from ctrain.features import RowReader

        version = network.version
        self.version, self.sha256, self.threshold = version.id, sha256, version.threshold
        self.columns: dict[str, Any] = version.columns
        self._read = RowReader(network.view.columns)
        self._view, self._encoder, self._module = network.view, network.encoder, network.module
        self._torch = torch

    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        """One probability a row, through view, encoder and network."""
        torch = self._torch
        arrays, matrix = self._read(rows), None
        if len(rows) == 1:
            matrix = self._encoder.encode_one(self._view.function(arrays))
        if matrix is None:
            matrix = self._encoder.encode(self._view(arrays))
        inputs_BW = torch.from_numpy(matrix)
        with torch.inference_mode():
            values: list[float] = torch.sigmoid(self._module(inputs_BW)).tolist()
        return values


def load_model(root: Root, slot: Slot) -> Model:
    """Load the served weights of a slot: hash, finite, shapes, warm-up.

    Raises:
        WeightsError: if the manifest names other weights, or they cannot serve; also whatever user code
            raises.
        CorruptArtifactError: if the bytes are not those of the hash.
        StorageError, OSError: if storage cannot be read now.
    """
    from ctrain.models.loading import assemble
    from ctrain.registry.versions import read_version

    version = read_version(root, slot.version)
    if version.served.sha256 != slot.sha256:
        raise WeightsError(
            slot.version, f"the registry holds {version.served.sha256[:12]}, asked for {slot.sha256[:12]}"
        )
    tensors = _at_low_priority(lambda: _verified_tensors(root, version.id, version.served))
    with _blamed_on(version.id):
        model = TorchModel(assemble(root, version, version.served, tensors), slot.sha256)
        for _ in range(3):
            values = model.predict([example_row(version.columns)])
        if len(values) != 1 or not all(map(math.isfinite, values)):
            raise WeightsError(slot.version, "the warm-up gave no finite number")
    return model


@contextmanager
def _blamed_on(version: str) -> Iterator[None]:
    """Make what user code raises a refusal of its version; storage and memory may be better next time."""
    try:
        yield
    except (*REFUSALS, StorageError, OSError, MemoryError):
        raise
    except FAILURES as error:
        raise WeightsError(version, _words(error)) from error


def example_row(columns: dict[str, Any]) -> dict[str, Any]:
    """A row that satisfies the columns' rules, for warm-up and the API's description."""
    from datetime import datetime

    row: dict[str, Any] = {}
    for name, column in columns.items():
        kind = column["kind"]
        if kind == "category":
            row[name] = (column.get("allowed") or ["example"])[0]
        elif kind == "timestamp":
            row[name] = datetime(2026, 1, 1, 12)
        elif kind == "flag":
            row[name] = True
        else:
            low, high = column.get("minimum"), column.get("maximum")
            row[name] = float(low if low is not None else min(high, 1.0) if high is not None else 1.0)
    return row


def _verified_tensors(root: Root, version: str, weights: WeightSet) -> dict[str, Any]:
    """Read, hash and check the weights in pieces that leave the interpreter to the event loop."""
    import safetensors.torch
    from safetensors import SafetensorError

    from ctrain.models.loading import check_finite

    name = f"{version}/{weights.file}"
    digest, pieces, size = hashlib.sha256(), [], 0
    for piece in root.models.chunks(name):
        digest.update(piece)
        pieces.append(piece)
        size += len(piece)
        if size > weights.size:
            break
    if digest.hexdigest() != weights.sha256:
        raise CorruptArtifactError(root.models.path(name), weights.sha256, digest.hexdigest())
    try:
        tensors: dict[str, Any] = safetensors.torch.load(b"".join(pieces))
    except SafetensorError as error:
        raise WeightsError(version, f"unreadable weights: {error}") from None
    check_finite(version, tensors)
    return tensors


def _at_low_priority(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run work that mostly leaves the interpreter lock, in a thread at nice 19.

    A thread of its own, since a process without privileges cannot raise a priority again.
    """
    outcome: dict[str, Any] = {}
    failure: list[BaseException] = []

    def run() -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            outcome.update(work())
        except FAILURES as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="weights-reader", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome
