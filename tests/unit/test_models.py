import dataclasses
import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from ctrain.errors import CorruptArtifactError, UserCodeError, WeightsError
from ctrain.features import Column, PartitionStatistics, columns_to_json, feature_view
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder, Inputs
from ctrain.models.loading import Network, load_network
from ctrain.models.tabular import NUMBER_WIDTH, PiecewiseLinear, TabularNet, embedding_width
from ctrain.models.trial import try_out
from ctrain.records import ModelVersion
from ctrain.registry import TrainedSet, write_version
from ctrain.storage import Root

INPUTS = Inputs((("kind", 4), ("place", 9)), ("size", "age"), ((-1.0, 0.0, 1.0), (-2.0, 2.0)))
TABULAR = {"type": "tabular", "hidden": [8], "dropout": 0.0, "numbers": "piecewise"}


@feature_view(kind=Column.category(), size=Column.number(nullable=True))
def view(rows):
    return {"kind": rows["kind"], "size": rows["size"]}


def matrix(rows: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    columns = [random.integers(0, 4, rows), random.integers(0, 9, rows)]
    return torch.tensor(np.column_stack([*columns, random.normal(size=(rows, 2))]), dtype=torch.float32)


@pytest.mark.parametrize("numbers", ["piecewise", "standard"])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_logits_have_one_value_a_row(numbers: str, rows: int) -> None:
    network = TabularNet(INPUTS, (16, 8), 0.1, numbers).eval()
    assert network(matrix(rows)).shape == (rows,)


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs((("kind", 4),), (), ()),
        Inputs((), ("size",), ((-1.0, 1.0),)),
    ],
)
def test_categories_alone_and_numbers_alone_are_enough(inputs: Inputs) -> None:
    assert TabularNet(inputs).eval()(torch.zeros(5, 1)).shape == (5,)


def test_one_row_scores_as_it_does_in_a_batch() -> None:
    network = TabularNet(INPUTS).eval()
    batch = matrix(64)
    whole = network(batch)
    alone = torch.cat([network(row.unsqueeze(0)) for row in batch])
    assert torch.allclose(whole, alone, atol=1e-6)


@pytest.mark.parametrize("numbers", ["piecewise", "standard"])
def test_a_missing_number_is_finite_and_is_not_the_mean(numbers: str) -> None:
    torch.manual_seed(0)
    network = TabularNet(INPUTS, (16,), 0.0, numbers).eval()
    missing, mean = torch.tensor([[1.0, 2.0, math.nan, 0.0], [1.0, 2.0, 0.0, 0.0]])
    scores = network(torch.stack([missing, mean]))
    assert torch.isfinite(scores).all()
    assert scores[0] != scores[1]


def test_missing_numbers_leave_finite_gradients() -> None:
    network = TabularNet(INPUTS)
    batch = matrix(8)
    batch[:, 2:] = math.nan
    network(batch).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_numbers_outside_the_edges_count_as_the_edge() -> None:
    encoding = PiecewiseLinear(((-1.0, 0.0, 1.0), (-2.0, 2.0)))
    inside = encoding(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    outside = encoding(torch.tensor([[1e9, 1e9], [-1e9, -1e9]]))
    assert inside.shape == (2, 2 * NUMBER_WIDTH)
    assert torch.equal(inside, outside)


def test_an_unknown_category_has_an_embedding_of_its_own() -> None:
    seen = {"kind": np.array(["a", "b"] * 50), "size": np.arange(100.0)}
    encoder = Encoder.fit(PartitionStatistics.of(seen), 4, 1)
    network = TabularNet(encoder.inputs, (8,)).eval()
    rows = {"kind": np.array(["never", "", "a"]), "size": np.zeros(3)}
    encoded = encoder.encode(rows)
    assert encoded[:, 0].tolist() == [0, 0, 1]
    scores = network(torch.from_numpy(encoded))
    assert scores[0] == scores[1] != scores[2]


def test_embeddings_grow_with_the_root_and_stay_small() -> None:
    assert [embedding_width(size) for size in (1, 4, 25, 10_000)] == [2, 3, 8, 16]


def build(factory: Any, **arguments: Any) -> nn.Module:
    model = {"type": "module", "factory": "m:f", "arguments": arguments}
    return build_module(model, INPUTS, lambda path: factory)


def test_a_factory_gets_the_layout_and_its_arguments() -> None:
    module = build(lambda inputs, size: nn.Linear(inputs.width, size), size=2)
    assert module.weight.shape == (2, 4)


def test_a_factory_that_gives_no_module_is_named() -> None:
    with pytest.raises(UserCodeError, match=r"m:f: gave int; expected a torch\.nn\.Module"):
        build(lambda inputs: 3)


def test_a_factory_that_does_not_take_the_arguments_is_told_what_they_are() -> None:
    with pytest.raises(UserCodeError, match=r"\(inputs, \*\*arguments\)"):
        build(lambda inputs: nn.Identity(), size=2)


@pytest.mark.parametrize("path", ["nowhere_at_all:f", "ctrain.models.tabular:Nothing"])
def test_a_factory_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(UserCodeError, match=path):
        build_module({"type": "module", "factory": path}, INPUTS)


def test_a_factory_that_raises_is_the_users_fault() -> None:
    def factory(inputs):
        raise ValueError("seven layers are too many")

    with pytest.raises(UserCodeError, match="seven layers are too many"):
        build(factory)


ENCODER = Encoder({"kind": ("a", "b")}, {"size": (1.0, 2.0)}, {"size": (-1.0, 0.0, 1.0)})


def load(root: Root, version: ModelVersion) -> Network:
    return load_network(root, version, version.served)


def register(root: Root, change: Any = lambda tensors: None, **fields: Any) -> ModelVersion:
    torch.manual_seed(0)
    tensors = build_module(TABULAR, ENCODER.inputs).state_dict()
    change(tensors)
    data = safetensors.torch.save(tensors)
    manifest = {
        "pipeline": "p", "run_id": "r", "code": "", "features": f"{__name__}:view", "view_hash": view.hash,
        "columns": columns_to_json(view.columns), "model": TABULAR, "label": "y", "threshold": 0.5,
        "dataset_version": 0, "partitions": (), "blocks": (), "seed": 0, "workers": 1, "parent": "",
        "rows": 2, "spec_sha256": "", "environment": {}, **fields,
    }  # fmt: skip
    return write_version(
        root, manifest, [TrainedSet(name, data, ENCODER.to_json()) for name in ("judged-0", "served")]
    )


def test_a_version_scores_raw_columns(tmp_path: Path) -> None:
    root = Root(tmp_path)
    network = load(root, register(root))
    scores = network.predict({"kind": np.array(["a", "z"]), "size": np.array([1.0, np.nan])})
    assert scores.shape == (2,)
    assert scores.dtype == np.float64
    assert ((scores > 0) & (scores < 1)).all()
    assert not network.module.training


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    def spoil(tensors):
        tensors["head.0.weight"][3, 1] = value

    root = Root(tmp_path)
    with pytest.raises(WeightsError, match=r"'head.0.weight' holds numbers that are not finite"):
        load(root, register(root, spoil))


def test_infinities_that_cancel_out_are_refused(tmp_path: Path) -> None:
    def spoil(tensors):
        tensors["head.0.weight"][0, :2] = torch.tensor([math.inf, -math.inf])

    root = Root(tmp_path)
    with pytest.raises(WeightsError, match="not finite"):
        load(root, register(root, spoil))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({"head.0.weight": torch.zeros(8, 99)}),
        lambda tensors: tensors.pop("head.0.bias"),
        lambda tensors: tensors.update(surprise=torch.zeros(1)),
    ],
    ids=["shape", "missing", "unknown"],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, change: Any) -> None:
    root = Root(tmp_path)
    with pytest.raises(WeightsError, match="do not fit the network"):
        load(root, register(root, change))


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    def spoil(tensors):
        tensors["head.0.weight"] = tensors["head.0.weight"].half()

    root = Root(tmp_path)
    with pytest.raises(WeightsError, match=r"float16.*expected.*float32"):
        load(root, register(root, spoil))


def test_bytes_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    root, data = Root(tmp_path), b"\x80\x04not tensors"
    version = register(root)
    digest = hashlib.sha256(data).hexdigest()
    version = dataclasses.replace(version, weights=(dataclasses.replace(version.served, sha256=digest),))
    root.models.write(f"{version.id}/served.safetensors", data)
    with pytest.raises(WeightsError, match="unreadable"):
        load(root, version)


def test_changed_bytes_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = register(root)
    root.models.write(f"{version.id}/served.safetensors", b"\x80\x04not tensors")
    with pytest.raises(CorruptArtifactError):
        load(root, version)


def test_a_user_module_is_loaded_by_its_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "mine", SimpleNamespace(f=lambda inputs: nn.Linear(inputs.width, 1))
    )

    def replace(tensors):
        tensors.clear()
        tensors.update(nn.Linear(2, 1).state_dict())

    root = Root(tmp_path)
    model = {"type": "module", "factory": "mine:f", "arguments": {}}
    assert load(root, register(root, replace, model=model)).module.weight.shape == (1, 2)


class Odd(nn.Module):
    """Everything that a build without real tensors breaks on."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs.width, 1)
        self.plain = torch.full((1,), 2.0)
        self.register_buffer("fixed", torch.ones(1), persistent=False)
        self.number = self.fixed.sum().item()
        self.again = [self.linear.weight]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs @ self.again[0].T).squeeze(-1) * self.plain * self.fixed * self.number


def test_a_user_module_may_hold_plain_tensors_numbers_and_one_weight_twice(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mine", SimpleNamespace(f=Odd))

    def replace(tensors):
        tensors.clear()
        tensors.update({"linear.weight": torch.tensor([[1.0, 3.0]]), "linear.bias": torch.zeros(1)})

    root = Root(tmp_path)
    model = {"type": "module", "factory": "mine:f", "arguments": {}}
    module = load(root, register(root, replace, model=model)).module
    assert module(torch.ones(1, 2)).tolist() == [8.0]
    try_out(model, INPUTS, matrix(8))


@pytest.mark.parametrize("rows", [1, 8])
def test_ctrains_own_network_passes_its_trial(rows: int) -> None:
    try_out(TABULAR, INPUTS, matrix(rows))


class Broken(nn.Module):
    """A network with one fault."""

    def __init__(self, inputs: Inputs, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(inputs.width, 1).requires_grad_(fault != "frozen")
        self.noise = torch.randn(()) if fault == "hidden state" else torch.zeros(())

    def get_extra_state(self):
        return {"a": 1} if self.fault == "extra state" else torch.zeros(1)

    def set_extra_state(self, state):
        pass

    def forward(self, inputs: torch.Tensor) -> Any:
        logits = self.linear(inputs.nan_to_num()).squeeze(-1) + self.noise
        if self.fault == "only training" and not self.training:
            raise ValueError("no answer for you")
        faults = {
            "raises": lambda: inputs[99_999],
            "tuple": lambda: (logits, logits),
            "squeezed": lambda: logits.squeeze(),
            "two columns": lambda: torch.stack([logits, logits], 1),
            "whole numbers": lambda: logits.long(),
            "detached": lambda: logits.detach(),
        }
        return faults.get(self.fault, lambda: logits)()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "cannot be trained: IndexError: index 99999 is out of bounds"),
        ("tuple", "gave tuple; expected a tensor"),
        ("squeezed", r"gave torch.float32 of shape \(\) for 1 rows; expected logits of shape \(1,\)"),
        ("two columns", r"of shape \(8, 2\) for 8 rows"),
        ("whole numbers", r"gave torch.int64 of shape \(8,\)"),
        ("detached", "cannot be trained: RuntimeError"),
        ("frozen", "no parameter that can be trained"),
        ("extra state", "cannot be saved: AttributeError"),
        ("hidden state", "it holds state that is not there. Register that state as a buffer"),
        ("only training", "cannot be asked for predictions: ValueError: no answer for you"),
    ],
)
def test_a_network_that_could_not_be_trained_and_served_is_found_out_before(fault: str, words: str) -> None:
    model = {"type": "module", "factory": "m:f", "arguments": {"fault": fault}}
    with pytest.raises(UserCodeError, match=f"^m:f: .*{words}"):
        try_out(model, INPUTS, matrix(8), lambda path: Broken)


def test_a_network_whose_state_grows_cannot_be_loaded() -> None:
    class Grows(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.register_buffer("seen", torch.zeros(2))
            return super().forward(inputs).squeeze(-1)

    model = {"type": "module", "factory": "m:f", "arguments": {}}
    with pytest.raises(UserCodeError, match=r"cannot be loaded: .*do not fit the network.*seen"):
        try_out(model, INPUTS, matrix(8), lambda path: lambda inputs: Grows(inputs.width, 1))
