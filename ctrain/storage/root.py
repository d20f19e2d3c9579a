"""Layout of a root: the one place that knows which file lies where.

    <root>/token                         operator's bearer token, mode 0600
    <root>/models/<version id>/          manifest.json, <set>.safetensors: served, judged-0 ...
    <root>/code/<sha256>.zip             user code
    <root>/live/<pipeline>.json          newest live document
    <root>/pipelines.db                  which pipelines a controller actor hosts
    <root>/<pipeline>/journal.db         the journal (unless CTRAIN_JOURNAL names another database)
    <root>/<pipeline>/tables/            Delta tables: accepted rows, quarantine; feature cache
    <root>/<pipeline>/log/               prediction and label logs
    <root>/<pipeline>/runs/<run id>/     request, checkpoints, result of each run

`models`, `code` and `live` may lie on any URL that fsspec opens (CTRAIN_STORE); the rest is local.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ctrain.errors import StorageError
from ctrain.records import LiveDocument, canonical, from_json, to_json
from ctrain.storage.artifacts import ArtifactStore, write_atomically


@dataclass(frozen=True)
class Root:
    """Where a namespace's pipelines keep everything. Always an absolute path."""

    path: Path
    store: str = ""
    """URL for models, code and live documents; empty means the root itself."""

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise StorageError(
                f"root {self.path} is relative; a job would resolve it in a copied folder. "
                "Give an absolute path, or set CTRAIN_ROOT."
            )
        if "runtime_resources" in self.path.parts:
            raise StorageError(
                f"root {self.path} lies in a Ray session's folder, which is deleted with the session. "
                "Give a lasting path, or set CTRAIN_ROOT."
            )

    @property
    def models(self) -> ArtifactStore:
        """Model versions."""
        return self._artifacts("models")

    @property
    def code(self) -> ArtifactStore:
        """Zipped user code."""
        return self._artifacts("code")

    @property
    def live(self) -> ArtifactStore:
        """Live documents."""
        return self._artifacts("live")

    def pipeline(self, name: str) -> PipelineRoot:
        """Folders of one pipeline."""
        return PipelineRoot(self.path / name)

    def token(self) -> str:
        """The operator's bearer token, made at the first call with mode 0600.

        Raises:
            StorageError: if others may read the file.
        """
        file = self.path / "token"
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            fresh = self.path / f".token.{secrets.token_hex(8)}"
            write_atomically(fresh, secrets.token_hex(32).encode(), mode=0o600)
            try:
                os.link(fresh, file)  # of two first starts, one token stands
            except FileExistsError:
                pass
            finally:
                fresh.unlink(missing_ok=True)
        mode = file.stat().st_mode & 0o777
        if mode & 0o077:
            raise StorageError(
                f"{file}: mode {mode:04o} lets others read the operator's token; expected 0600. "
                f"Run: chmod 600 {file}"
            )
        return file.read_text(encoding="ascii").strip()

    def write_live(self, document: LiveDocument) -> None:
        """Publish a live document, which replicas read at start; a newer one that is there stays."""
        try:
            stored = self.read_live(document.pipeline)
        except (StorageError, ValueError):
            stored = None  # what cannot be read is put right
        if stored is not None and stored.order > document.order:
            return
        self.live.write(f"{document.pipeline}.json", canonical(to_json(document)).encode())

    def read_live(self, pipeline: str) -> LiveDocument | None:
        """The newest live document, or None where no controller ever wrote one."""
        import json

        name = f"{pipeline}.json"
        if not self.live.exists(name):
            return None
        return from_json(LiveDocument, json.loads(self.live.read(name)))

    def _artifacts(self, folder: str) -> ArtifactStore:
        return ArtifactStore(f"{self.store or self.path}/{folder}")


@dataclass(frozen=True)
class PipelineRoot:
    """Folders of one pipeline."""

    path: Path

    @property
    def tables(self) -> Path:
        """Delta tables and the feature cache."""
        return self.path / "tables"

    @property
    def log(self) -> Path:
        """Prediction and label logs."""
        return self.path / "log"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.path / "runs"

    def journal_url(self) -> str:
        """SQLAlchemy URL of the journal: CTRAIN_JOURNAL, or a file beside the tables."""
        return os.environ.get("CTRAIN_JOURNAL") or f"sqlite:///{self.path / 'journal.db'}"


def open_root(path: str | None = None) -> Root:
    """The root named by `path`, else by CTRAIN_ROOT, else `~/.ctrain`; CTRAIN_STORE names the store."""
    text = path or os.environ.get("CTRAIN_ROOT") or "~/.ctrain"
    return Root(Path(text).expanduser(), os.environ.get("CTRAIN_STORE", ""))
