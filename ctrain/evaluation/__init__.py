"""Room of evaluation: metrics, paired comparison, gate (pure), and scoring of versions (`score`)."""

from ctrain.evaluation.compare import PairedInterval, paired_interval
from ctrain.evaluation.gate import decide_gate
from ctrain.evaluation.metrics import binary_metrics, calibration_error

__all__ = ["PairedInterval", "binary_metrics", "calibration_error", "decide_gate", "paired_interval"]
