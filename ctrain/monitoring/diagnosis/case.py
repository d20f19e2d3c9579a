"""A case under diagnosis: what it is about, and the evidence that was found so far."""

from __future__ import annotations

from dataclasses import dataclass

from ctrain.monitoring.diagnosis.frames import Events, Frame
from ctrain.records import Diagnosis, DiagnosisAction, DiagnosisEvidence, DiagnosisVerdict

ACTIONS: dict[DiagnosisVerdict, DiagnosisAction] = {
    "none": "none", "season": "wait", "data_quality": "quarantine", "upstream_schema": "quarantine",
    "serving_skew": "escalate", "label_delay": "hold_training", "traffic_mix": "wait",
    "covariate_shift": "wait", "concept": "retrain", "concept_local": "retrain",
    "label_noise": "hold_training", "needs_recalibration": "recalibrate", "bad_version": "roll_back",
    "unknown": "escalate",
}  # fmt: skip
"""The action of each verdict; a covariate shift that costs loss is retrained for."""


@dataclass
class Case:
    """Windows and events as they were given, and what was noted on the way."""

    window: Frame
    past: list[Frame]
    events: Events
    gap: int
    evidence: list[DiagnosisEvidence]

    def conclude(
        self,
        verdict: DiagnosisVerdict,
        reason: str,
        *,
        kind: str = "",
        subjects: tuple[str, ...] = (),
        way: str = "",
        would_decide: str = "",
        action: DiagnosisAction | None = None,
    ) -> Diagnosis:
        """The verdict with all evidence; its action is the verdict's own unless one is given."""
        counted = max((one.windows for one in self.evidence), default=0)
        return Diagnosis(
            verdict, action or ACTIONS[verdict], kind, subjects, way, reason, would_decide,
            tuple(self.evidence), self.window.rows, self.window.labelled, counted,
        )  # fmt: skip
