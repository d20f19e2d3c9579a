"""Every exception of ctrain.

    CtrainError
    ├── SpecError (ValueError)              a spec with faults, all of them
    ├── UserCodeError                       user code that cannot be imported or run
    ├── StorageError
    │   ├── CorruptArtifactError (ValueError)   bytes are not what their hash says
    │   └── MissingArtifactError (FileNotFoundError)
    ├── JournalError
    │   ├── FencedError                     another controller has taken over
    │   ├── TamperedError                   the hash chain is broken
    │   └── KeyReusedError (ValueError)     one idempotency key, two different requests
    ├── DataError
    │   └── PartitionError (ValueError)     a partition that cannot be read or used
    │       └── SchemaError                 a file's columns are others than the contract's
    ├── FeatureError (ValueError)           a feature view that breaks its declaration
    ├── TrainingError                       a run that ended without weights
    ├── WeightsError (ValueError)           weights that must not serve
    ├── ServingError
    │   └── DeployError                     Serve refused or did not become ready
    └── ClientError
        ├── RequestError (ValueError)       4xx: what was wrong with the request
        ├── UnauthorizedError (PermissionError)
        ├── ConflictError                   the state does not allow the verb
        └── UnavailableError (ConnectionError)  nothing answered in time

Each error names the thing, what was found, what was expected and what to do. Arguments go to the
base class as they are and the text is built in `__str__`, so errors survive pickling by Ray.
A refused partition, a failed gate and an aborted canary are outcomes (records), not errors.
"""

from __future__ import annotations

from typing import NamedTuple


class CtrainError(Exception):
    """Base of all errors of ctrain."""


class Fault(NamedTuple):
    """One fault of a spec: the field's path, what is wrong, and a hint at what is right."""

    where: str
    message: str
    hint: str = ""


class SpecError(CtrainError, ValueError):
    """A spec has faults; `faults` lists all of them."""

    def __init__(self, origin: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(origin, faults)
        self.origin, self.faults = origin, faults

    def __str__(self) -> str:
        count = len(self.faults)
        lines = [f"{self.origin}: {count} fault{'' if count == 1 else 's'}"]
        where = max((len(fault.where) for fault in self.faults), default=0)
        message = max((len(fault.message) for fault in self.faults), default=0)
        for fault in self.faults:
            lines.append(f"  {fault.where:<{where}}  {fault.message:<{message}}  {fault.hint}".rstrip())
        return "\n".join(lines)


class UserCodeError(CtrainError):
    """User code named by the spec cannot be imported, or failed."""

    def __init__(self, path: str, problem: str, remedy: str = "") -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f". {self.remedy}" if self.remedy else "")


class StorageError(CtrainError):
    """A file of the root cannot be read or written."""


class CorruptArtifactError(StorageError, ValueError):
    """The bytes of an artifact are not those its hash names."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        return (
            f"{self.path}: sha256 {self.found[:12]} found, {self.expected[:12]} expected. "
            "It is not used; what serves keeps serving. Restore the file or retrain."
        )


class MissingArtifactError(StorageError, FileNotFoundError):
    """An artifact that a record names is not in storage."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: not in storage. Check CTRAIN_ROOT, or restore it from a backup."


class JournalError(CtrainError):
    """The journal refused."""


class FencedError(JournalError):
    """A controller with a newer epoch has taken over; this one must stop."""

    def __init__(self, pipeline: str, epoch: int, current: int) -> None:
        super().__init__(pipeline, epoch, current)
        self.pipeline, self.epoch, self.current = pipeline, epoch, current

    def __str__(self) -> str:
        return (
            f"pipeline {self.pipeline}: epoch {self.epoch} is over, epoch {self.current} writes. "
            "Nothing was written; this controller must stop."
        )


class TamperedError(JournalError):
    """The journal's chain of hashes is broken."""

    def __init__(self, pipeline: str, seq: int, problem: str) -> None:
        super().__init__(pipeline, seq, problem)
        self.pipeline, self.seq, self.problem = pipeline, seq, problem

    def __str__(self) -> str:
        return (
            f"pipeline {self.pipeline}: event {self.seq} of the journal: {self.problem}. "
            "Restore the journal from a backup; events before it are intact."
        )


class KeyReusedError(JournalError, ValueError):
    """An idempotency key came back with another request."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"idempotency key {self.key!r} was used for another request. Send a new key."


class DataError(CtrainError):
    """Data cannot be used."""


class PartitionError(DataError, ValueError):
    """A partition cannot be read or used; the loop goes on without it."""

    def __init__(self, partition: str, problem: str) -> None:
        super().__init__(partition, problem)
        self.partition, self.problem = partition, problem

    def __str__(self) -> str:
        return f"partition {self.partition}: {self.problem}"


class SchemaError(PartitionError):
    """A file's columns are not those that the contract needs."""

    def __init__(self, partition: str, problem: str, changes: tuple[str, ...]) -> None:
        super().__init__(partition, problem)
        self.args = (partition, problem, changes)
        self.changes = changes


class FeatureError(CtrainError, ValueError):
    """A feature view breaks its own declaration."""

    def __init__(self, view: str, problem: str) -> None:
        super().__init__(view, problem)
        self.view, self.problem = view, problem

    def __str__(self) -> str:
        return f"feature view {self.view}: {self.problem}"


class TrainingError(CtrainError):
    """A run ended without weights."""

    def __init__(self, run_id: str, problem: str) -> None:
        super().__init__(run_id, problem)
        self.run_id, self.problem = run_id, problem

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.problem}"


class WeightsError(CtrainError, ValueError):
    """Weights that must not serve: wrong shapes, numbers that are not finite, a failed warm-up."""

    def __init__(self, version: str, problem: str) -> None:
        super().__init__(version, problem)
        self.version, self.problem = version, problem

    def __str__(self) -> str:
        return f"model version {self.version}: {self.problem}. The replica keeps serving what it serves."


class ServingError(CtrainError):
    """Serving failed."""


class DeployError(ServingError):
    """Ray Serve refused an application, or it did not become ready."""

    def __init__(self, pipeline: str, problem: str) -> None:
        super().__init__(pipeline, problem)
        self.pipeline, self.problem = pipeline, problem

    def __str__(self) -> str:
        return f"application {self.pipeline}: {self.problem}"


class ClientError(CtrainError):
    """A call of the client did not succeed."""


class RequestError(ClientError, ValueError):
    """The server refused the request; `problems` names each wrong field."""

    def __init__(self, status: int, problems: tuple[str, ...]) -> None:
        super().__init__(status, problems)
        self.status, self.problems = status, problems

    def __str__(self) -> str:
        return f"refused with {self.status}: " + "; ".join(self.problems)


class UnauthorizedError(ClientError, PermissionError):
    """The verb needs a bearer token that is valid."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(status, problem)
        self.status, self.problem = status, problem

    def __str__(self) -> str:
        return (
            f"{self.problem} ({self.status}). Operator verbs need the token of the root "
            "(file `token`), passed as token= or CTRAIN_TOKEN."
        )


class ConflictError(ClientError):
    """The pipeline's state does not allow the verb."""

    def __init__(self, problem: str, generation: int) -> None:
        super().__init__(problem, generation)
        self.problem, self.generation = problem, generation

    def __str__(self) -> str:
        return f"{self.problem} (present generation {self.generation})"


class UnavailableError(ClientError, ConnectionError):
    """Nothing answered in time; the same call may be sent again."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url, self.problem = url, problem

    def __str__(self) -> str:
        return f"{self.url}: {self.problem}. It may be sent again: a verb with the same key."
