"""Diagnosis: why does a window differ from those before it, and what follows. Pure: columns in, one verdict out."""

from ctrain.monitoring.diagnosis.frames import Events, Frame, LabelKind
from ctrain.monitoring.diagnosis.verdict import diagnose

__all__ = ["Events", "Frame", "LabelKind", "diagnose"]
