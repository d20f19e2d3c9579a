from pathlib import Path

import pytest
import torch

from ctrain.demo.model import build
from ctrain.models.encoder import Inputs

INPUTS = Inputs((("carrier", 4),), ("n",), ((-1.0, 0.0, 1.0),))
ROWS = torch.tensor([[1.0, 0.5], [2.0, -0.5], [3.0, float("nan")]])


def test_without_faults_it_is_the_default_network() -> None:
    module = build(INPUTS).eval()
    torch.testing.assert_close(module(ROWS), module.net(ROWS))  # type: ignore[operator]


def test_the_fault_starts_when_its_file_appears_and_only_when_predicting(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    module = build(INPUTS, fault_file=str(fault)).eval()
    module(ROWS)
    fault.touch()
    with pytest.raises(RuntimeError, match="switched on"):
        module(ROWS)
    module.train()(ROWS)


def test_shuffled_permutes_rows_in_training_only() -> None:
    module = build(INPUTS, shuffled=True)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    torch.manual_seed(1)
    straight = module.eval()(ROWS)
    mixed = [module.train()(ROWS) for _ in range(8)]
    assert any(not torch.equal(one, straight) for one in mixed)
    for one in mixed:
        torch.testing.assert_close(one.sort().values, straight.sort().values)
