"""Read a spec from YAML or a mapping; list all its faults at once, each with its field's path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ctrain.errors import Fault, SpecError
from ctrain.spec.pipeline import PipelineSpec


def load_spec(path: str | Path) -> PipelineSpec:
    """Read `pipeline.yaml`; a relative source path counts from the file's folder.

    Raises:
        SpecError: lists every fault of the file.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(str(path), (Fault("", f"cannot be read: {error.strerror}", ""),)) from None
    except UnicodeDecodeError:
        raise SpecError(str(path), (Fault("", "is not UTF-8 text", ""),)) from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(str(path), (Fault("", f"is not YAML: {error}", ""),)) from None
    spec = parse_spec(raw, origin=str(path))
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
        faults = tuple(_fault(detail, raw) for detail in error.errors(include_url=False))
        raise SpecError(origin, faults) from None


def with_absolute_paths(spec: PipelineSpec, folder: Path) -> PipelineSpec:
    """Make a local source path absolute, counted from `folder`: jobs run in a copied folder."""
    path = spec.source.path
    if "://" in path:
        return spec
    absolute = str((folder / Path(path).expanduser()).resolve())
    return spec.model_copy(update={"source": spec.source.model_copy(update={"path": absolute})})


def _fault(detail: Mapping[str, Any], raw: Any) -> Fault:
    location = [part for part in detail["loc"] if not _is_union_tag(part, detail["loc"], raw)]
    where = ".".join(str(part) for part in location)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _siblings(location)
        return Fault(where, "unknown field", _did_you_mean(str(location[-1]), known))
    if kind == "missing":
        return Fault(where, "is required", "")
    if kind == "literal_error":
        options = [option.strip(" '") for option in context["expected"].replace(" or ", ",").split(",")]
        hint = _did_you_mean(str(detail["input"]), options)
        return Fault(where, f"unknown value {detail['input']!r}", hint)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        hint = f"type is one of {context.get('expected_tags', '')}".strip()
        return Fault(where, f"unknown type {context.get('tag', 'none')!r}", hint)
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind != "value_error":
        message = f"{message}; found {detail['input']!r}"
    return Fault(where, message, "")


def _is_union_tag(part: Any, location: tuple[Any, ...], raw: Any) -> bool:
    """Pydantic puts the tag of a union into the path; the user never wrote it there."""
    value = raw
    for step in location:
        if step is part and isinstance(value, Mapping) and value.get("type", None) == part:
            return True
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            if isinstance(value, Mapping) and value.get("type") == step:
                continue
            return False
    return False


def _siblings(location: list[Any]) -> list[str]:
    model: Any = PipelineSpec
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    return list(getattr(model, "model_fields", {}))


def _did_you_mean(found: str, known: list[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known)}" if known else ""
