"""Records of the data room: what lies in the source, what was refused, what was landed."""

from __future__ import annotations

from dataclasses import dataclass

NO_LABEL = "label is null"
"""Reason of rows that are left out because their label is not known."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a partition, as its seal names it."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A sealed partition seen in the source."""

    name: str
    """Start of its time range, e.g. 2013-03-14; also the name of its block of evidence."""
    path: str
    """Folder or URL that holds the files."""
    files: tuple[SourceFile, ...]
    sha256: str
    """Content hash: of the sorted (name, sha256) of its files."""
    rows: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a look at one folder of the source found: a sealed partition, or why it is not used."""

    name: str
    partition: Partition | None
    problem: str = ""
    """Why it is not used yet: unsealed, truncated, an unreadable seal."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """Verdict on a partition's rows."""

    rows: int
    accepted: int
    reasons: dict[str, int]
    """Refused rows by reason, e.g. {"distance: below 0": 3}; a row counts for its first reason."""

    @property
    def refused(self) -> int:
        """Number of refused rows."""
        return self.rows - self.accepted

    @property
    def unlabelled(self) -> int:
        """Number of rows that were left out for want of a label."""
        return self.reasons.get(NO_LABEL, 0)


@dataclass(frozen=True, slots=True)
class IngestedPartition:
    """Outcome of landing one partition: committed as part of a dataset version, or refused whole."""

    name: str
    sha256: str
    """Content hash of the source files."""
    report: ContractReport
    refused: str = ""
    """Why the whole partition was refused; empty if it was committed."""
    dataset_version: int = -1
    """Version of the Delta table that first holds it; -1 if refused."""
    first_event: float = 0.0
    last_event: float = 0.0
    """Newest event time of its accepted rows."""
    schema_changes: tuple[str, ...] = ()
    """How its columns differ from those that the contract needs, e.g. `distance: column is gone`."""
