"""User code by hash: a deterministic zip of the project, and attributes loaded out of it.

Takes a folder, gives a zip whose hash names the code; refuses nothing but leaves out hidden files,
environments, tests, the root, landing data and files above 1 MB.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import shutil
import sys
import threading
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ctrain.errors import UserCodeError
from ctrain.storage.root import Root

_SUFFIXES = {".py", ".txt", ".yaml", ".yml", ".json", ".toml"}
_FOLDERS_LEFT_OUT = {"__pycache__", "tests", "venv", "node_modules", "build", "dist"}
_LARGEST = 1_000_000
_LOADED: dict[tuple[str, str], ModuleType] = {}
_LOCK = threading.RLock()


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
        module = _module(root, sha256, name)
    except ModuleNotFoundError as error:
        raise UserCodeError(path, f"no module named {error.name!r}") from None
    if not hasattr(module, attribute):
        has = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise UserCodeError(path, f"module {name} has no {attribute!r}", f"it has: {has}")
    return getattr(module, attribute)


def _module(root: Root, sha256: str, name: str) -> ModuleType:
    if not sha256:
        return importlib.import_module(name)
    with _LOCK:
        if (sha256, name) not in _LOADED:
            folder = _extracted(root, sha256)
            file = folder.joinpath(*name.split("."))
            inside = file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()
            _LOADED[sha256, name] = (
                _import_private(folder, sha256, name) if inside else importlib.import_module(name)
            )
        return _LOADED[sha256, name]


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


def _import_private(folder: Path, sha256: str, name: str) -> ModuleType:
    """Import with the folder first on the path, then move what came from it to private names."""
    own = {entry.stem for entry in folder.iterdir()}
    aside = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] in own}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in [key for key in sys.modules if key.split(".")[0] in own]:
            sys.modules[f"_ctrain_{sha256[:12]}.{key}"] = sys.modules.pop(key)
        sys.modules.update(aside)
