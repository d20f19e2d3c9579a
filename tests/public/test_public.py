"""What anyone who opens the repository may count on: light imports, errors that travel, true maps."""

import ast
import graphlib
import importlib
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import ctrain
from ctrain import errors
from ctrain.errors import CtrainError, Fault
from ctrain.records import LiveDocument, from_json
from ctrain.spec import load_spec

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
HEAVY = ("torch", "ray", "pandas")

FIRST = {"records", "errors"}
SECOND = {"spec", "storage", "telemetry"}
LIGHT = FIRST | SECOND | {"client", "features", "evaluation", "rollout", "monitoring", "registry"}
"""Rooms without ray and torch at module level; `models` is pure torch."""
RAY_ROOMS = {"data", "training", "serving"}
ABOVE_THE_CONTROLLER = {"controller", "driver", "cli", "demo"}


# Light imports


@pytest.mark.parametrize("module", ["ctrain", "ctrain.client", "ctrain.cli.main", "ctrain.spec"])
def test_importing_it_loads_neither_torch_nor_ray_nor_pandas(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout) == []


def test_the_public_names_are_sorted_and_all_resolve() -> None:
    assert sorted(ctrain.__all__) == ctrain.__all__
    for name in ctrain.__all__:
        assert getattr(ctrain, name).__name__ == name


def test_a_public_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clint'; it has Client, Column"):
        ctrain.Clint  # noqa: B018


# Errors


def error_classes() -> list[type[CtrainError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in found if issubclass(value, CtrainError)]


def example(error: type[CtrainError]) -> CtrainError:
    if "__init__" not in vars(error):
        return error("what happened")
    values: dict[str, Any] = {"str": "some text", "int": 404, "tuple[str, ...]": ("a is wrong", "b is wrong")}
    values["tuple[Fault, ...]"] = (Fault("a.b", "is required"), Fault("c", "unknown field", "d"))
    parameters = list(inspect.signature(error.__init__).parameters.values())[1:]
    return error(*(values[parameter.annotation] for parameter in parameters))


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_an_error_survives_pickling_with_its_text_and_its_fields(error: type[CtrainError]) -> None:
    before = example(error)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert str(after) == str(before)
    assert str(after).strip()
    assert vars(after) == vars(before)


def test_the_tree_of_errors_is_drawn_at_the_top() -> None:
    drawn = set(re.findall(r"\w*Error\b", str(errors.__doc__)))
    assert {error.__name__ for error in error_classes()} <= drawn


# Files that are shipped


def test_every_serve_config_names_an_application_that_exists_and_a_live_document_of_epoch_zero() -> None:
    files = sorted((REPOSITORY / "serve_configs").glob("*.y*ml"))
    assert files
    for file in files:
        for application in yaml.safe_load(file.read_text(encoding="utf-8"))["applications"]:
            module, attribute = application["import_path"].split(":")
            source = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
            assert attribute in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
            for deployment in application["deployments"]:
                document = from_json(LiveDocument, deployment["user_config"])
                assert (document.pipeline, document.epoch) == (application["name"], 0), file


def test_every_spec_of_the_demonstration_loads_and_names_code_that_exists() -> None:
    files = sorted((REPOSITORY / "ctrain" / "demo").rglob("*.y*ml"))
    assert files
    for file in files:
        spec = load_spec(file)
        module, attribute = spec.features.split(":")
        assert hasattr(importlib.import_module(module), attribute), file


# The direction of imports (design.md, 3), read from the source


class Import(NamedTuple):
    module: str
    """Where it stands."""
    target: str
    """What is imported: a module."""
    at_top: bool
    """Whether importing `module` runs it."""


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted((REPOSITORY / "ctrain").rglob("*.py"))}


def imports_of(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module} has a relative import"
                for alias in child.names:
                    deeper = f"{child.module}.{alias.name}"
                    yield Import(module, deeper if deeper in MODULES else str(child.module), at_top)
            yield from walk(child, at_top and not inside and not for_types)

    yield from walk(ast.parse(MODULES[module].read_text(encoding="utf-8")), True)


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "ctrain" and len(parts) > 1 else ""


def between_rooms() -> list[tuple[str, str, Import]]:
    pairs = [(room(found.module), room(found.target), found) for found in IMPORTS]
    return [(here, there, found) for here, there, found in pairs if here and there and here != there]


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target, at_top in IMPORTS:
        if at_top and target in MODULES:
            packages = {".".join(target.split(".")[:n]) for n in range(1, target.count(".") + 1)}
            outer = {package for package in packages if not f"{module}.".startswith(f"{package}.")}
            edges[module] |= {target, *outer}
    tuple(graphlib.TopologicalSorter(edges).static_order())


def test_pure_rooms_load_neither_ray_nor_torch() -> None:
    bad = [
        found
        for found in IMPORTS
        if found.at_top and room(found.module) in LIGHT and found.target.split(".")[0] in ("ray", "torch")
    ]
    assert bad == []


def test_models_know_torch_and_not_ray() -> None:
    bad = [found for found in IMPORTS if room(found.module) == "models" and found.target.startswith("ray")]
    assert bad == []


def test_nobody_below_the_controller_imports_it() -> None:
    bad = [
        found
        for here, there, found in between_rooms()
        if there == "controller" and here not in ABOVE_THE_CONTROLLER
    ]
    assert bad == []


def test_nobody_imports_the_command_line_the_demonstration_or_the_jobs() -> None:
    bad = [found for here, there, found in between_rooms() if there in ("cli", "demo")]
    bad += [found for found in IMPORTS if found.target.split(".")[0] in ("jobs", "tests")]
    assert bad == []


def test_the_first_rooms_import_only_what_is_before_them() -> None:
    allowed = {"records": {"errors"}, "errors": set(), "client": FIRST | {"spec"}}
    allowed |= dict.fromkeys(SECOND, FIRST | SECOND)
    bad = [found for here, there, found in between_rooms() if here in allowed and there not in allowed[here]]
    assert bad == []


def test_ray_rooms_share_records_and_the_reader_of_data_and_nothing_else() -> None:
    bad = [
        found
        for here, there, found in between_rooms()
        if here in RAY_ROOMS and there in RAY_ROOMS and found.target != "ctrain.data.read"
    ]
    assert bad == []


# The README


def readme_tree() -> list[str]:
    block = README.split("## Files")[1].split("```")[1]
    names, folder = [], ""
    for line in filter(str.strip, block.splitlines()):
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            names.append(name)
        else:
            names.append(folder + name)
    return names


def test_every_name_in_the_readme_s_tree_exists_and_is_the_kind_it_says() -> None:
    for name in readme_tree():
        path = REPOSITORY / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name


def test_the_readme_s_tree_has_every_room() -> None:
    rooms = {f"ctrain/{file.parent.name}/" for file in (REPOSITORY / "ctrain").glob("*/__init__.py")}
    assert rooms <= set(readme_tree())


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`((?:ctrain|jobs|serve_configs|cluster|tests)/[\w./-]+)`", README))
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_spec_of_the_readme_loads(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load_spec(tmp_path / "pipeline.yaml").pipeline == "flights-late"


def test_the_readme_s_table_of_fields_has_every_part_of_the_spec() -> None:
    table = README.split("| field | meaning |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(ctrain.PipelineSpec.model_fields)
