"""Room of storage: the only door to disk and object store."""

from ctrain.storage.artifacts import ArtifactStore, file_sha256, write_atomically
from ctrain.storage.root import PipelineRoot, Root, open_root

__all__ = ["ArtifactStore", "PipelineRoot", "Root", "file_sha256", "open_root", "write_atomically"]
