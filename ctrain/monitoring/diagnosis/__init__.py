"""Diagnosis: why a window differs from those before it. Pure: columns in, one verdict with one action out."""

from ctrain.monitoring.diagnosis.frames import Events, Frame, LabelKind
from ctrain.monitoring.diagnosis.verdict import diagnose

__all__ = ["Events", "Frame", "LabelKind", "diagnose"]
