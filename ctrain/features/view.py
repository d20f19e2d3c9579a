"""Feature views: one stateless definition, applied to Arrow batches in bulk and to one request.

Takes raw columns as numpy arrays of one length, gives model inputs as arrays of that length. What is
fitted (vocabularies, scales) is not here: it belongs to the model version.

Arrays of raw columns: categories as numpy strings with "" for missing, numbers as float64 with NaN,
flags as float64 0, 1 or NaN, timestamps as datetime64[us] in UTC with NaT.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ctrain.errors import FeatureError, UserCodeError
from ctrain.records import Json, sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

Arrays = dict[str, npt.NDArray[Any]]
Kind = Literal["category", "number", "timestamp", "flag"]
FLOAT64 = np.dtype(np.float64)
LARGEST = 1e30
"""Magnitude of a raw number above which it is refused: its square must fit the moments, itself float32."""


@dataclass(frozen=True, slots=True)
class Column:
    """A raw column that a feature view reads: what a row of the source and a request must hold."""

    kind: Kind
    nullable: bool = False
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str, ...] | None = None

    @staticmethod
    def category(nullable: bool = False, allowed: Sequence[str] | None = None) -> Column:
        """Text of a limited set, e.g. an airline's code."""
        return Column("category", nullable, allowed=tuple(allowed) if allowed is not None else None)

    @staticmethod
    def number(
        unit: str = "",
        minimum: float | None = None,
        maximum: float | None = None,
        nullable: bool = False,
    ) -> Column:
        """A finite number of magnitude 1e30 at most; `unit` is for people."""
        return Column("number", nullable, unit, minimum, maximum)

    @staticmethod
    def timestamp(nullable: bool = False) -> Column:
        """A point in time, ISO 8601 in requests; without an offset it is UTC."""
        return Column("timestamp", nullable)

    @staticmethod
    def flag(nullable: bool = False) -> Column:
        """True or false."""
        return Column("flag", nullable)


@dataclass(frozen=True)
class FeatureView:
    """A stateless transform with declared inputs. Called with arrays, it gives checked arrays."""

    name: str
    columns: dict[str, Column]
    function: Callable[[Arrays], Mapping[str, npt.NDArray[Any]]] = field(repr=False)
    hash: str
    """sha256 of the function's name, the source of its whole module (helpers and constants that it uses
    there) and the columns. What it imports from other modules is not seen: the code's hash names that."""

    def __call__(self, rows: Arrays) -> Arrays:
        """Turn raw columns of B rows into features of B rows.

        Raises:
            FeatureError: if the function gives no mapping, or an array of another length or shape.
        """
        shape = next(iter(rows.values())).shape if rows else (0,)
        features = self.function(rows)
        if not isinstance(features, Mapping) or not features:
            found = type(features).__name__
            raise FeatureError(self.name, f"gave {found}; expected a mapping of name to array")
        checked: Arrays = {}
        for name, values in features.items():
            # Nearly every feature of a request is this already; the checks cost as much as the view.
            if type(values) is np.ndarray and values.dtype is FLOAT64 and values.shape == shape:
                checked[name] = values
            else:
                checked[name] = self._checked(name, values, shape)
        return checked

    def _checked(self, name: str, values: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        array = np.asarray(values)
        if array.shape != shape:
            raise FeatureError(self.name, f"feature {name!r} has shape {array.shape}; expected {shape}")
        if array.dtype.kind not in "Ufiub":
            problem = f"feature {name!r} has dtype {array.dtype}; expected strings or numbers"
            raise FeatureError(self.name, problem)
        return array if array.dtype.kind == "U" else array.astype(np.float64, copy=False)


def feature_view(**columns: Column) -> Callable[[Callable[[Arrays], Any]], FeatureView]:
    """Declare a feature view: name the raw columns, decorate the function.

    Example:
        >>> @feature_view(distance=Column.number(unit="miles", minimum=0))
        ... def view(rows):
        ...     return {"distance": np.log1p(rows["distance"])}
        >>> view({"distance": np.array([0.0])})["distance"]
        array([0.])
    """
    for name, column in columns.items():
        if not isinstance(column, Column):
            raise FeatureError(name, f"is declared as {column!r}; expected Column.category() or the like")

    def declare(function: Callable[[Arrays], Any]) -> FeatureView:
        digest = sha256_of([function.__qualname__, _source_sha256(function), columns_to_json(columns)])
        return FeatureView(function.__name__, dict(columns), function, digest)

    return declare


def _source_sha256(function: Callable[..., Any]) -> str:
    """Hash of the file that defines a function; of its compiled code where there is no file."""
    code = function.__code__
    try:
        source = Path(code.co_filename).read_bytes()
    except OSError:
        source = repr((code.co_code, code.co_names, code.co_consts)).encode()
    return hashlib.sha256(source).hexdigest()


def columns_to_json(columns: Mapping[str, Column]) -> Json:
    """Columns as JSON, for the model version's manifest."""
    result: Json = {}
    for name, column in columns.items():
        entry = asdict(column)
        entry["allowed"] = list(column.allowed) if column.allowed is not None else None
        result[name] = entry
    return result


def columns_from_json(data: Mapping[str, Any]) -> dict[str, Column]:
    """Columns from a manifest."""
    columns = {}
    for name, entry in data.items():
        allowed = entry.get("allowed")
        columns[name] = Column(**{**entry, "allowed": tuple(allowed) if allowed is not None else None})
    return columns


class RowReader:
    """Turns validated request rows into arrays; what follows from the columns alone is done once.

    Args:
        columns: Raw columns that the view declares.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._numbers = [name for name, column in columns.items() if column.kind in ("number", "flag")]
        self._others = [(name, column) for name, column in columns.items() if name not in self._numbers]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Arrays:
        """Arrays of B rows; an absent nullable field counts as null."""
        names = self._numbers
        # One block for all numbers: an array of its own for each costs more than the rest of a request.
        if len(rows) == 1:
            block = np.array([rows[0].get(name) for name in names], dtype=np.float64).reshape(-1, 1)
        else:
            block = np.array([[row.get(name) for row in rows] for name in names], dtype=np.float64)
        arrays: Arrays = dict(zip(names, block, strict=True))
        for name, column in self._others:
            arrays[name] = _array(column, [row.get(name) for row in rows])
        return arrays


def arrays_from_rows(columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> Arrays:
    """Arrays of B validated request rows, as `RowReader` gives them."""
    return RowReader(columns)(rows)


def _array(column: Column, values: list[Any]) -> npt.NDArray[Any]:
    if column.kind == "category":
        return np.array(["" if value is None else value for value in values], dtype=np.str_)
    return np.array([_instant(value) for value in values], dtype="datetime64[us]")


def _instant(value: datetime | str | None) -> Any:
    if value is None:
        return np.datetime64("NaT", "us")
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def arrays_from_table(columns: Mapping[str, Column], table: pa.Table) -> Arrays:
    """Arrays of a table of the source, with the very values that requests give."""
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays: Arrays = {}
    for name, column in columns.items():
        values = table.column(name)
        if column.kind == "category":
            text = pc.fill_null(values.cast(pa.string()), "")
            arrays[name] = np.array(text.to_pylist(), dtype=np.str_) if len(text) else np.array([], "<U1")
        elif column.kind == "timestamp":
            arrays[name] = values.cast(pa.timestamp("us")).combine_chunks().to_numpy(zero_copy_only=False)
        else:
            numbers = values.cast(pa.float64()).combine_chunks()
            arrays[name] = numbers.to_numpy(zero_copy_only=False).astype(np.float64)
    return arrays


def load_view(path: str) -> FeatureView:
    """Import a feature view by `module:attribute`.

    Raises:
        UserCodeError: says what the module has instead.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserCodeError(
            path, f"no module named {error.name!r}", "Run from the project's folder"
        ) from None
    return as_view(path, module, attribute)


def as_view(path: str, module: Any, attribute: str) -> FeatureView:
    """The attribute of a module, checked to be a feature view."""
    found = getattr(module, attribute, None)
    if not isinstance(found, FeatureView):
        has = [name for name, value in vars(module).items() if isinstance(value, FeatureView)]
        problem = (
            f"module {module.__name__} has no {attribute!r}"
            if found is None
            else f"{attribute} is a {type(found).__name__}, no feature view"
        )
        raise UserCodeError(path, problem, f"it has: {', '.join(has) or 'no feature view'}")
    return found
