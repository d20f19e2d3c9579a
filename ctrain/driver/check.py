"""Faults of a spec file and of the code it names, all at once and without a cluster."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ctrain.errors import CtrainError, Fault, SpecError, UserCodeError
from ctrain.spec import PipelineSpec, load_spec
from ctrain.spec.base import did_you_mean

_USER_CODE_FAILS = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError)


def check(path: str | Path) -> PipelineSpec:
    """Read a spec and import the code it names.

    Raises:
        SpecError: lists every fault of the file and of the code.
    """
    file = Path(path)
    faults: list[Fault] = []
    spec: PipelineSpec | None = None
    try:
        spec = load_spec(file)
    except SpecError as error:
        faults += error.faults
    with _importable(file):
        faults += _code_faults(file)
        if spec is not None and not faults:
            faults += _faults_of_both(spec)
    if faults or spec is None:
        raise SpecError(str(path), tuple(faults))
    return spec


@contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Let the code beside the spec and here be imported."""
    before = list(sys.path)
    sys.path[:0] = [str(file.resolve().parent), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _faults_of_both(spec: PipelineSpec) -> list[Fault]:
    """Where spec and view are each right and do not go together."""
    from ctrain.data import contract_faults
    from ctrain.features import load_view

    view = load_view(spec.features)
    vouched = [
        Fault(f"evaluation.leaks.vouched.{number}", f"the view reads no column {name!r}", hint)
        for number, name in enumerate(spec.evaluation.leaks.vouched)
        if name not in view.columns
        for hint in [did_you_mean(name, list(view.columns))]
    ]
    return [*contract_faults(spec, view), *vouched]


def _code_faults(file: Path) -> list[Fault]:
    """Faults of the code that a spec file names, whatever else is wrong with the file."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(raw, dict):
        return []
    model = raw.get("model")
    named = {"features": raw.get("features")}
    if isinstance(model, dict) and model.get("type") == "module":
        named["model.factory"] = model.get("factory")
    checks = [_code_fault(where, path) for where, path in named.items()]
    return [fault for fault in checks if fault is not None]


def _code_fault(where: str, path: Any) -> Fault | None:
    from ctrain.features import load_view

    if not isinstance(path, str) or path.count(":") != 1 or not all(path.split(":")):
        return None  # the spec itself says what is wrong with it
    module_name, attribute = path.split(":")
    try:
        if where == "features":
            load_view(path)
        else:
            module = importlib.import_module(module_name)
            if not callable(getattr(module, attribute, None)):
                has = ", ".join(sorted(name for name in vars(module) if not name.startswith("_")))
                return Fault(where, f"{path}: module {module_name} has no {attribute!r}", f"it has: {has}")
    except UserCodeError as error:
        return Fault(where, f"{path}: {error.problem}", error.remedy)
    except (CtrainError, *_USER_CODE_FAILS) as error:
        return Fault(where, f"{path}: importing it failed: {type(error).__name__}: {error}", "")
    return None
