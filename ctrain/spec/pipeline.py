"""The spec of a pipeline: everything that a user declares, with defaults that run on a laptop."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ctrain.spec.base import ImportPath, Spec, fault, faults
from ctrain.spec.contract import Contract
from ctrain.spec.evaluation import Evaluation
from ctrain.spec.model import Model, TabularModel
from ctrain.spec.monitoring import Monitoring
from ctrain.spec.rollout import Canary, Rollout
from ctrain.spec.serving import Goals, Serving
from ctrain.spec.source import FileSource, Label
from ctrain.spec.training import Training
from ctrain.spec.triggers import NewData, Trigger

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TAKEN = ("models", "code", "live", "cache", "token")
"""Names below a root that are not a pipeline's."""
_DAY = 86400.0


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        hint = "a lower-case letter, then at most 62 lower-case letters, digits and dashes"
        raise fault(f"{name!r} is not a pipeline's name", hint)
    if name in _TAKEN:
        raise fault(f"{name!r} is a name that every root uses", f"any name but {', '.join(_TAKEN)}")
    return name


class PipelineSpec(Spec):
    """One model under continuous training."""

    pipeline: Annotated[str, AfterValidator(_name)]
    """Name: lower-case letters, digits and dashes; also the route prefix."""

    owner: str = Field(min_length=1)
    """Who is told about alerts."""

    source: FileSource
    contract: Contract = Contract()

    features: ImportPath
    """`module:attribute` of the feature view."""

    label: Label
    model: Model = TabularModel()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    rollout: Rollout = Canary()
    serving: Serving = Serving()
    goals: Goals = Goals()
    monitoring: Monitoring = Monitoring()
    triggers: tuple[Trigger, ...] = (NewData(),)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> PipelineSpec:
        found = []
        if self.label.name == self.source.event_time:
            same = f"label.name and source.event_time are the same column {self.label.name!r}"
            found.append(("", same, ""))
        for where, other in (("source.event_time", self.source.event_time), ("label.name", self.label.name)):
            if self.label.known_at == other:
                found.append(("label.known_at", f"is the same column as {where}, {other!r}", ""))
        blocks, window = self.evaluation.blocks, self.training.window / _DAY
        if blocks > window:
            longer = f"{blocks} days are longer than training.window, {window:g} days"
            found.append(("evaluation.blocks", longer, "fewer blocks or a longer window"))
        if found:
            raise faults(found)
        return self

    def to_json(self) -> dict[str, Any]:
        """The whole spec with its defaults, as plain JSON; what the journal and run records quote."""
        return self.model_dump(mode="json")

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
