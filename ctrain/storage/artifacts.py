"""Immutable files by hash and small documents by name, on a local path or any fsspec URL.

Takes bytes, gives bytes back only if their hash is the expected one. A local write is complete or
absent: temporary file, fsync, rename, fsync of the folder. Object stores put a whole object at once.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from ctrain.errors import CorruptArtifactError, MissingArtifactError

_CHUNK = 1 << 20


class ArtifactStore:
    """Files below one folder or URL. Names are relative and use `/`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._base = fsspec.core.url_to_fs(self.url)
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path or URL of a file, for messages and records."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self._fs.exists(f"{self._base}/{name}"))

    def names(self, folder: str = "") -> list[str]:
        """Names directly below a folder, sorted; empty if the folder does not exist."""
        base = f"{self._base}/{folder}".rstrip("/")
        if not self._fs.isdir(base):
            return []
        return sorted(entry.rsplit("/", 1)[-1] for entry in self._fs.ls(base, detail=False))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, replacing an older one in one step."""
        if self._local:
            write_atomically(Path(self._base) / name, data)
        else:
            self._fs.pipe_file(f"{self._base}/{name}", data)

    def read(self, name: str, sha256: str | None = None) -> bytes:
        """Read a file whole.

        Args:
            name: Relative name.
            sha256: Expected hash; None reads without a check.

        Raises:
            MissingArtifactError: if it is not there.
            CorruptArtifactError: if the hash differs.
        """
        try:
            data: bytes = self._fs.cat_file(f"{self._base}/{name}")
        except FileNotFoundError:
            raise MissingArtifactError(self.path(name)) from None
        if sha256 is not None:
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise CorruptArtifactError(self.path(name), sha256, found)
        return data

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read a file in pieces of 1 MiB, so that a reader may hash and yield the processor between."""
        try:
            with self._fs.open(f"{self._base}/{name}", "rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        except FileNotFoundError:
            raise MissingArtifactError(self.path(name)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (ArtifactStore, (self.url,))


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a local file whole or not at all, and on disk when this returns, new folders included."""
    folders = [path.parent, *(folder.parent for folder in path.parents if not folder.exists())]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in folders:
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, would outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hash of a local file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
