"""Room of the registry: immutable model versions by content hash."""

from ctrain.registry.versions import Registry, TrainedSet, read_version, read_weights, write_version

__all__ = ["Registry", "TrainedSet", "read_version", "read_weights", "write_version"]
