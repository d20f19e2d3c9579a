"""The network: ctrain's tabular default, or any `nn.Module` by import path."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from ctrain.spec.base import ImportPath, Spec


class TabularModel(Spec):
    """Embeddings, encoded numbers and an MLP: within .001 AUC of gradient boosting on our sets."""

    type: Literal["tabular"] = "tabular"

    hidden: tuple[int, ...] = Field((128, 128), min_length=1)
    """Width of each hidden layer."""

    dropout: float = Field(0.1, ge=0, lt=1)

    numbers: Literal["piecewise", "standard"] = "piecewise"
    """Piecewise-linear encoding over quantile bins (Gorishniy et al., 2022), or standardised."""

    bins: int = Field(24, ge=2, le=128)
    """Quantile bins a number, for `piecewise`."""

    minimum_count: int = Field(10, ge=1)
    """Categories seen fewer times share the unknown bucket."""


class ModuleModel(Spec):
    """A factory of the user: `factory(inputs, **arguments) -> nn.Module`.

    The module takes float32 `[B, W]` as laid out by `models.encoder.Inputs` and gives logits `[B]`.
    """

    type: Literal["module"] = "module"
    factory: ImportPath
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    bins: int = Field(24, ge=2, le=128)
    minimum_count: int = Field(10, ge=1)


Model = Annotated[TabularModel | ModuleModel, Field(discriminator="type")]
