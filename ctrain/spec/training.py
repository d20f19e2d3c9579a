"""How a run trains."""

from __future__ import annotations

from pydantic import Field

from ctrain.spec.base import PositiveDuration, Spec


class Training(Spec):
    """One run: from scratch, on the window's matured partitions."""

    window: PositiveDuration = 60 * 86400.0
    """Span of event time before the watermark that a run learns from."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the one-cycle schedule."""

    weight_decay: float = Field(1e-4, ge=0)

    workers: int = Field(1, ge=1)
    """Ray Train workers: gloo on CPU, NCCL on GPU."""

    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)

    seed: int = Field(7, ge=0)

    max_failures: int = Field(2, ge=0)
    """Times a run resumes from its last checkpoint after a worker died."""

    attempts: int = Field(2, ge=1)
    """Runs tried for one trigger before it is given up with an alert."""

    timeout: PositiveDuration = 3600.0
