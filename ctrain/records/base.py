"""What all records share: JSON and hashes."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

R = TypeVar("R")
Json = dict[str, Any]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(record: Any) -> Any:
    """Turn a record (or a container of records) into plain JSON values."""
    kind: Any = type(record)
    return _adapter(kind).dump_python(record, mode="json")


def from_json(kind: type[R], data: Any) -> R:
    """Rebuild a record of type `kind`; unknown and missing fields raise pydantic's ValidationError."""
    wanted: Any = kind
    result: R = _adapter(wanted).validate_python(data)
    return result


def canonical(data: Any) -> str:
    """JSON text with one spelling a value: sorted keys, no spaces, no NaN; what hashes are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_of(data: Any) -> str:
    """Hash of a JSON value's canonical text."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()
