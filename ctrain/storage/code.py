"""User code by hash: a deterministic zip of the project, and attributes loaded out of it.

Takes a folder, gives a zip whose hash names the code; refuses nothing but leaves out hidden files,
environments, tests, the root, landing data and files above 1 MB.

Loaded code is a package of its own, `_ctrain_<hash>`: its `shop.py` is the module `_ctrain_<hash>.shop`,
and an import statement in it that names a module of the project finds this version's, whenever it
runs. So any number of versions are resident at once, and none is importable under its public name.
What goes around import statements, `importlib.import_module` in user code, sees installed modules only.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import io
import shutil
import sys
import sysconfig
import threading
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from ctrain.errors import UserCodeError
from ctrain.storage.root import Root

_SUFFIXES = {".py", ".txt", ".yaml", ".yml", ".json", ".toml"}
_FOLDERS_LEFT_OUT = {"__pycache__", "tests", "venv", "node_modules", "build", "dist"}
_LARGEST = 1_000_000
_PROJECTS: dict[str, _Project] = {}
_LOCK = threading.Lock()


def pack_code(folder: Path, exclude: Sequence[Path] = ()) -> bytes:
    """Zip the project: the same files give the same bytes, whatever their times and order."""
    folder = folder.resolve()
    left_out = [path.resolve() for path in exclude]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(folder, left_out):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def _files(folder: Path, left_out: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink() or entry in left_out:
            continue
        if entry.is_dir():
            if entry.name not in _FOLDERS_LEFT_OUT:
                found += _files(entry, left_out)
        elif entry.suffix in _SUFFIXES and entry.stat().st_size <= _LARGEST:
            found.append(entry)
    return found


def store_code(root: Root, folder: Path, exclude: Sequence[Path] = ()) -> str:
    """Pack a folder into the root; gives its sha256."""
    data = pack_code(folder, [*exclude, root.path])
    sha256 = hashlib.sha256(data).hexdigest()
    if not root.code.exists(f"{sha256}.zip"):
        root.code.write(f"{sha256}.zip", data)
    return sha256


def code_uri(root: Root, sha256: str) -> str:
    """URI of the zip, as a `runtime_env` takes it for its working_dir."""
    path = root.code.path(f"{sha256}.zip")
    return path if "://" in path else f"file://{path}"


def load_attribute(root: Root, sha256: str, path: str) -> Any:
    """Load `module:attribute` out of stored code; two versions of one module may be resident at once.

    Modules that the code lacks, or all if `sha256` is empty, are imported as installed.

    Raises:
        UserCodeError: if the module or the attribute is not there.
        CorruptArtifactError: if the zip is not what its hash says.
    """
    name, _, attribute = path.partition(":")
    try:
        module = _project(root, sha256).module(name) if sha256 else importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").removeprefix(f"{_package(sha256)}.")
        raise UserCodeError(path, f"no module named {missing!r}") from None
    if not hasattr(module, attribute):
        has = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise UserCodeError(path, f"module {name} has no {attribute!r}", f"it has: {has}")
    return getattr(module, attribute)


def _package(sha256: str) -> str:
    return f"_ctrain_{sha256[:12]}"


def _project(root: Root, sha256: str) -> _Project:
    with _LOCK:
        if sha256 not in _PROJECTS:
            project = _Project(_package(sha256), _extracted(root, sha256))
            sys.meta_path.insert(0, project)  # before the finder of plain files, which would find them too
            _PROJECTS[sha256] = project
        return _PROJECTS[sha256]


def _extracted(root: Root, sha256: str) -> Path:
    folder = root.path / "cache" / "code" / sha256
    if not folder.is_dir():
        data = root.code.read(f"{sha256}.zip", sha256)
        fresh = folder.with_name(f".{sha256}.{uuid.uuid4().hex}")
        fresh.mkdir(parents=True)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(fresh)
    return folder


class _Project(MetaPathFinder):
    """One version's code as a private package, and the finder of its modules."""

    def __init__(self, package: str, folder: Path) -> None:
        self._package, self._folder = package, folder
        self._own = _top_level(folder)
        self._builtins = {**vars(builtins), "__import__": self._import}

    def module(self, name: str) -> ModuleType:
        """The project's module, or the installed one if the project has none of its name."""
        own = name.partition(".")[0] in self._own
        return importlib.import_module(f"{self._package}.{name}" if own else name)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the package and its modules, which get an `__import__` of their own."""
        if fullname == self._package:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self._folder)]
            return spec
        if not fullname.startswith(f"{self._package}."):
            return None
        found = PathFinder.find_spec(fullname, path)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(fullname, found.loader.path, self._builtins)
        return found

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What an import statement in this version's code calls."""
        top = name.partition(".")[0]
        if level or top not in self._own:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        private = f"{self._package}.{name}"
        module = builtins.__import__(private, globals, locals, fromlist or (), 0)
        # `import a.b` binds a; `from a.b import c` takes c out of a.b.
        return module if fromlist else sys.modules[f"{self._package}.{top}"]


class _Loader(SourceFileLoader):
    """Runs a module with builtins of its own, which every function defined there keeps."""

    def __init__(self, fullname: str, path: str, private: dict[str, Any]) -> None:
        super().__init__(fullname, path)
        self._private = private

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._private
        super().exec_module(module)


def _top_level(folder: Path) -> frozenset[str]:
    """Names of the modules that an import in the project's folder would find there.

    A folder without `__init__.py` counts only where nothing of its name is installed, as in Python.
    `ctrain` is always the installed one: views and encoders are checked by its classes.
    """
    installed = sorted(set(sysconfig.get_paths().values()))
    names = set()
    for entry in folder.iterdir():
        if entry.is_dir():
            regular = (entry / "__init__.py").is_file()
            if regular or (any(entry.rglob("*.py")) and not _is_regular(entry.name, installed)):
                names.add(entry.name)
        elif entry.suffix == ".py":
            names.add(entry.stem)
    return frozenset(names - {"ctrain"})


def _is_regular(name: str, path: list[str]) -> bool:
    found = PathFinder.find_spec(name, path)
    return found is not None and found.origin is not None
