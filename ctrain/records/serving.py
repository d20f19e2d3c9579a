"""Records of serving: what should be live, and what replicas say and count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

SlowSeconds = Annotated[tuple[float, ...], Field(max_length=3)]
"""Seconds inside the model from which an answer counts as slow: the champion's p50, p90 and p99 of an
earlier minute, ascending; empty while they are unknown."""

SlowCounts = Annotated[tuple[int, ...], Field(max_length=3)]
"""Counts at each of `SlowSeconds`; empty says the same as zeros."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot of a replica should hold."""

    version: str
    """Id of the model version."""
    label: str
    """Its name for people, e.g. v7."""
    sha256: str
    """Hash of its served weights, from the registry."""


@dataclass(frozen=True, slots=True)
class LiveDocument:
    """What every replica of a pipeline should serve. The highest (epoch, generation) wins."""

    pipeline: str
    epoch: int
    """Fencing epoch of the controller that wrote it; 0 for an operator's file."""
    generation: int
    champion: Slot | None = None
    challenger: Slot | None = None
    previous: Slot | None = None
    rollout: str = ""
    """Id of the rollout under way; empty if none."""
    split: float = 0.0
    """Share of live traffic that the challenger answers."""
    mirror: Literal["", "challenger", "previous"] = ""
    """Slot that requests which the champion answers are mirrored to; it answers nobody."""
    slow_s: SlowSeconds = ()

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, generation): what replicas compare."""
        return (self.epoch, self.generation)

    @property
    def slots(self) -> dict[str, Slot]:
        """The filled slots by name."""
        named = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        return {name: slot for name, slot in named.items() if slot is not None}


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """Cumulative draws of one arm of a rollout at one split, in one replica incarnation.

    A draw is a throw of the split's coin: a request without a key is one, and so is each key.
    """

    rollout: str
    split: float
    """Chance that the draw fell to the challenger; for a key seen at an earlier step, given what that
    step showed of it."""
    arm: Literal["champion", "challenger"]
    requests: int = 0
    """Draws with a request."""
    errors: int = 0
    """Draws with an exception or an answer that is not finite, be it the first answer or a later one."""
    slow: SlowCounts = ()
    """Draws whose first answer took, inside the model, at least each of the document's `slow_s`."""
    keyed: bool = False
    """Whether these are keys: a key falls the same way in every replica, so they do not add up over
    replicas."""
    answered: int = 0
    """Draws whose first answer was none of the errors."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Cumulative comparison of champion and challenger on mirrored requests, each one witness."""

    rollout: str
    pairs: int = 0
    """Requests that both models scored."""
    flipped: float = 0.0
    """Sum over requests of the share of rows on whose decision they differ."""
    shift: float = 0.0
    """Sum over requests of the mean of challenger's minus champion's probability."""
    distance: float = 0.0
    """Sum over requests of the mean absolute difference."""
    errors: int = 0
    """Mirrored requests at which the challenger raised or was not finite."""
    shed: int = 0
    """Requests that were not mirrored because the queue was full."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one replica says of itself: on every pull, and as its answer to a document."""

    replica: str
    """Serve's id of the replica."""
    incarnation: str
    """New at each start of the process; counters belong to it."""
    epoch: int
    generation: int
    """Of the newest document it has taken."""
    resident: dict[str, str]
    """sha256 of the weights in memory, by version id."""
    refused: dict[str, str]
    """Why a version could not be loaded, by version id."""
    arms: tuple[ArmCounts, ...] = ()
    pairs: tuple[PairCounts, ...] = ()
    answered: int = 0
    """Requests answered 200 since its start."""
    failed: int = 0
    """Requests answered 5xx since its start."""
    latency: dict[str, float] = field(default_factory=dict)
    """Quantiles (p50, p90, p99) of the champion's seconds inside the model, last minute."""
    dropped: int = 0
    """Answers that the bounded prediction log had to drop."""
    at: float = 0.0

    def serves(self, document: LiveDocument) -> bool:
        """Whether it has taken this document and holds its champion and challenger weights."""
        if (self.epoch, self.generation) < document.order:
            return False
        needed = [slot for slot in (document.champion, document.challenger) if slot is not None]
        return all(self.resident.get(slot.version) == slot.sha256 for slot in needed)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the controller sees of serving."""

    reports: tuple[ReplicaReport, ...]
    """Newest report of every replica heard lately."""
    expected: tuple[str, ...] | None
    """Replica ids that Serve means to run; None if Serve could not be asked."""
    deployed: bool = True
    """Whether the application exists."""
    configured: int | None = None
    """Generation in Serve's own configuration, 0 for an operator's file; None if Serve was not asked."""
