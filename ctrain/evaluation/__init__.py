"""Room of evaluation: metrics, evidence by blocks, gate and watch (pure); scoring of versions (`score`)."""

from ctrain.evaluation.compare import PairedInterval, recorded_pair, with_pair
from ctrain.evaluation.gate import decide_gate
from ctrain.evaluation.gross import output_difference
from ctrain.evaluation.metrics import binary_metrics, calibration_error
from ctrain.evaluation.watch import watch

__all__ = [
    "PairedInterval",
    "binary_metrics",
    "calibration_error",
    "decide_gate",
    "output_difference",
    "recorded_pair",
    "watch",
    "with_pair",
]
