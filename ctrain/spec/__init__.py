"""Room of the spec: what a user writes, checked where it is declared, all faults at once."""

from ctrain.spec.load import load_spec, parse_spec, with_absolute_paths
from ctrain.spec.pipeline import PipelineSpec

__all__ = ["PipelineSpec", "load_spec", "parse_spec", "with_absolute_paths"]
