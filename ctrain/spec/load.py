"""Read a spec from YAML or a mapping; list all its faults at once, each with its field's path."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from ctrain.errors import Fault, SpecError
from ctrain.spec.base import Spec, did_you_mean, one_of
from ctrain.spec.pipeline import PipelineSpec

_MESSAGES = {
    "greater_than": "{found} is not above {gt:g}",
    "greater_than_equal": "{found} is below {ge:g}",
    "less_than": "{found} is not below {lt:g}",
    "less_than_equal": "{found} is above {le:g}",
    "finite_number": "{found} is not a finite number",
    "float_type": "{found} is not a number",
    "float_parsing": "{found} is not a number",
    "int_type": "{found} is not a whole number",
    "int_parsing": "{found} is not a whole number",
    "int_from_float": "{found} is not a whole number",
    "bool_type": "{found} is neither true nor false",
    "bool_parsing": "{found} is neither true nor false",
    "string_type": "{found} is not text",
    "string_too_short": "is empty",
    "tuple_type": "{found} is not a list",
    "too_short": "is empty",
    "invalid-json-value": "{found} is not JSON",
    "invalid_key": "is not text, and names of fields are",
}
"""What a user reads, by pydantic's kind of error."""


def load_spec(path: str | Path) -> PipelineSpec:
    """Read `pipeline.yaml`; a relative source path counts from the file's folder.

    Raises:
        SpecError: lists every fault of the file.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(str(path), (Fault("", f"cannot be read: {error.strerror}"),)) from None
    except UnicodeDecodeError:
        raise SpecError(str(path), (Fault("", "is not UTF-8 text"),)) from None
    try:
        raw, twice = yaml.safe_load(text), _keys_given_twice(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise SpecError(str(path), (_yaml_fault(error),)) from None
    except RecursionError:
        raise SpecError(str(path), (Fault("", "is nested too deeply"),)) from None
    try:
        spec = parse_spec(raw, origin=str(path))
    except SpecError as error:
        raise SpecError(str(path), (*twice, *error.faults)) from None
    if twice:
        raise SpecError(str(path), tuple(twice))
    return with_absolute_paths(spec, file.parent)


def parse_spec(raw: Any, origin: str = "spec") -> PipelineSpec:
    """Check a mapping against the spec.

    Args:
        raw: What YAML or JSON gave.
        origin: Name of the file or caller, for the error.

    Raises:
        SpecError: lists every fault.
    """
    if not isinstance(raw, Mapping):
        found = "nothing" if raw is None else type(raw).__name__
        fault = Fault("", f"expected a mapping of fields, found {found}", "pipeline: my-model")
        raise SpecError(origin, (fault,))
    try:
        return PipelineSpec.model_validate(raw)
    except ValidationError as error:
        details = [detail for detail in error.errors(include_url=False) if not _is_echo(detail)]
        raise SpecError(origin, tuple(chain.from_iterable(map(_faults, details)))) from None


def with_absolute_paths(spec: PipelineSpec, folder: Path) -> PipelineSpec:
    """Make a local source path absolute, counted from `folder`: jobs run in a copied folder."""
    path = spec.source.path
    if "://" in path:
        return spec
    absolute = str((folder / Path(path).expanduser()).resolve())
    return spec.model_copy(update={"source": spec.source.model_copy(update={"path": absolute})})


def _yaml_fault(error: yaml.YAMLError) -> Fault:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return Fault(f"line {mark.line + 1}", f"is not YAML: {error.problem}, column {mark.column + 1}")
    return Fault("", f"is not YAML: {error}".replace("\n", " "))


def _keys_given_twice(root: yaml.Node | None) -> list[Fault]:
    """YAML itself keeps the last of two equal keys and says nothing."""
    found: list[Fault] = []
    nodes = [(root, "")]
    seen: set[int] = set()  # an anchor may be used many times, even inside itself
    for node, where in nodes:  # grows as it goes
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += [(entry, _below(where, str(index))) for index, entry in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                nodes.append((value, _below(where, name)))
                if name in lines:
                    found.append(
                        Fault(_below(where, name), f"is given twice, in lines {lines[name]} and {line}")
                    )
                lines.setdefault(name, line)
    return found


def _below(where: str, name: str) -> str:
    return ".".join(part for part in (where, name) if part)


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because its entries have faults of their own."""
    return detail["type"] == "too_short" and len(detail["input"]) > 0


def _faults(detail: ErrorDetails) -> list[Fault]:
    """Faults behind one of pydantic's errors; a validator of ours may have found several."""
    if detail["type"] != "faults":
        return [_fault(detail)]
    where = ".".join(_walk(detail["loc"])[0])
    return [Fault(_below(where, place), *rest) for place, *rest in detail["ctx"]["faults"]]


def _fault(detail: ErrorDetails) -> Fault:
    path, part = _walk(detail["loc"])
    where = ".".join(path)
    kind, context, found = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return Fault(where, "is required")
    if kind == "extra_forbidden":
        return Fault(where, "unknown field", did_you_mean(path[-1], _fields(part)))
    if kind == "literal_error":
        # said of the whole that has the field: `evaluation.gate.0  unknown metric 'acu'`
        owner, field = (path[:-2], "key") if path[-1] == "[key]" else (path[:-1], path[-1])
        hint = did_you_mean(found, _quoted(context["expected"]))
        return Fault(".".join(owner), f"unknown {field} {_short(found)}", hint)
    if kind == "union_tag_invalid":
        hint = did_you_mean(context["tag"], _quoted(context["expected_tags"]))
        return Fault(where, f"unknown type {_short(context['tag'])}", hint)
    if kind == "union_tag_not_found":
        return Fault(where, "type is required", one_of(list(_members(part))))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return Fault(where, f"expected a mapping, found {_short(found)}", ", ".join(_fields(part)))
    if kind in _MESSAGES:
        return Fault(where, _MESSAGES[kind].format(found=_short(found), **context))
    return Fault(where, f"{detail['msg']}, found {_short(found)}")


def _walk(location: Sequence[int | str]) -> tuple[list[str], Any]:
    """Follow pydantic's path through the spec.

    Returns:
        The path as the user wrote it, without the union tags that pydantic puts in, and the type that
        stands there; for a field that does not exist, the type that should have it.
    """
    path: list[str] = []
    here: Any = PipelineSpec
    for step in location:
        if here is JsonValue:  # the rest is pydantic's own way through it
            break
        members = _members(here)
        if members and isinstance(step, str):
            here = members.get(step, here)
            continue
        path.append(str(step))
        if isinstance(here, type) and issubclass(here, Spec):
            here = here.model_fields[step].annotation if step in here.model_fields else here
        else:
            arguments = get_args(here)  # of tuple[X, ...] or dict[K, X]
            here = _plain(arguments[0 if get_origin(here) is tuple else -1]) if arguments else here
    return path, here


def _members(annotation: Any) -> dict[str, type[Spec]]:
    """Members of a union that `type` tells apart, by tag; empty for any other annotation."""
    return {
        member.model_fields["type"].default: member
        for member in (get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ())
        if isinstance(member, type) and issubclass(member, Spec)
    }


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _fields(annotation: Any) -> list[str]:
    return list(getattr(annotation, "model_fields", {}))


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _short(value: Any) -> str:
    return reprlib.repr(value)
