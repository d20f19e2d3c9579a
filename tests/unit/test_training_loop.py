import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from ctrain.data import Features
from ctrain.errors import CtrainError, MissingArtifactError, TrainingError, UserCodeError
from ctrain.models.encoder import Encoder
from ctrain.spec.training import Training
from ctrain.training.guard import Guarded, user_code
from ctrain.training.loop import Progress, fit, one_cycle
from ctrain.training.run import RunLostError, _fit, is_retryable
from ctrain.training.window import encode_share

ROWS, WIDTH = 70, 3
TRAINING = Training(epochs=4, batch_size=16, learning_rate=0.01)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, WIDTH, generator=random)
    return inputs, (inputs.sum(1) > 0).float()


def network(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
    return nn.Sequential(*layers, nn.Flatten(0))


def run(training: Training = TRAINING, seed: int = 7, **options) -> Progress:
    return fit(options.pop("module", None) or network(), *data(), training, seed, "r", **options)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_seed_gives_one_set_of_bits() -> None:
    first, again, other = run(), run(), run(seed=8)
    assert same(first.weights, again.weights)
    assert same(first.optimizer, again.optimizer)
    assert first.loss == again.loss
    assert not same(first.weights, other.weights)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_resumed_fit_ends_with_the_bits_of_an_undisturbed_one(epoch: int) -> None:
    saved: list[Progress] = []
    whole = run(after_epoch=saved.append)
    torch.manual_seed(99)  # the next process has another state
    after: list[Progress] = []
    resumed = run(module=network(seed=42), start=saved[epoch - 1], after_epoch=after.append)
    assert [progress.epoch for progress in after] == list(range(epoch + 1, 5))
    assert same(resumed.weights, whole.weights)
    assert same(resumed.optimizer, whole.optimizer)
    assert resumed.loss == whole.loss


class Noisy(nn.Module):
    """Draws from every generator that a user may reach for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        noise = random.gauss(0, 1) + np.random.normal() + torch.randn(())
        return self.linear(inputs).squeeze(-1) + noise


def test_what_a_network_draws_from_python_and_numpy_is_seeded_for_each_epoch() -> None:
    def noisy() -> nn.Module:
        torch.manual_seed(5)
        return Noisy()

    saved: list[Progress] = []
    whole = run(module=noisy(), after_epoch=saved.append)
    random.seed(99)
    np.random.seed(99)
    assert same(run(module=noisy()).weights, whole.weights)
    assert same(run(module=noisy(), start=saved[1]).weights, whole.weights)


def test_the_loss_is_the_mean_over_the_rows_of_all_ranks() -> None:
    own: list[torch.Tensor] = []

    def add_up(values: torch.Tensor) -> torch.Tensor:
        own.append(values)
        return values + torch.tensor([300.0, 100.0])  # another rank's 100 rows, of loss 3

    alone, shared = run(), run(add_up=add_up)
    rows = own[-1][1]
    assert rows == 64  # whole batches of the 70 rows
    assert shared.loss == pytest.approx((alone.loss * rows + 300) / (rows + 100))
    assert len(own) == TRAINING.epochs


def test_progress_is_a_copy_that_later_epochs_leave_alone() -> None:
    saved: list[Progress] = []
    run(after_epoch=saved.append)
    assert not same(saved[0].weights, saved[1].weights)
    assert all(value.is_contiguous() for value in saved[0].weights.values())


def test_the_loss_falls() -> None:
    losses: list[float] = []
    run(Training(epochs=20, batch_size=16, learning_rate=0.02), after_epoch=lambda p: losses.append(p.loss))
    assert losses[-1] < 0.7 * losses[0]


def test_no_rows_are_refused() -> None:
    with pytest.raises(TrainingError, match="no rows"):
        fit(network(), torch.empty(0, WIDTH), torch.empty(0), TRAINING, 1, "r")


def test_fewer_rows_than_a_batch_are_one_step() -> None:
    inputs, labels = data()
    assert math.isfinite(fit(network(), inputs[:3], labels[:3], TRAINING, 1, "r").loss)


def test_a_loss_that_is_not_finite_ends_the_run_before_its_epoch_is_saved() -> None:
    inputs, labels = data()
    inputs[5] = math.nan
    saved: list[Progress] = []
    with pytest.raises(TrainingError, match="loss is nan after epoch 1; lower learning_rate"):
        fit(network(), inputs, labels, Training(epochs=2, batch_size=70), 1, "r", after_epoch=saved.append)
    assert saved == []


def test_weights_that_are_not_finite_end_the_run() -> None:
    module = network()
    module.register_buffer("extra", torch.tensor([math.inf]))
    with pytest.raises(TrainingError, match="'extra' are not finite after epoch 1"):
        run(module=module)


def test_logits_of_another_shape_name_the_shape() -> None:
    with pytest.raises(TrainingError, match=r"logits of shape \(16, 1\) for 16 rows; expected \(16,\)"):
        run(module=nn.Linear(WIDTH, 1))


def test_the_batch_is_divided_among_workers() -> None:
    batches: list[int] = []

    class Watch(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            batches.append(len(inputs))
            return super().forward(inputs).squeeze(-1)

    run(module=Watch(WIDTH, 1), world=2)
    assert set(batches) == {8}


def test_one_cycle_rises_falls_and_never_ends_at_nothing() -> None:
    rates = [one_cycle(step / 1000, 2.0) for step in range(1000)]
    top = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.08)
    assert max(rates) == pytest.approx(2.0)
    assert top == 300
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (TrainingError("r", "no rows"), False),
        (UserCodeError("m:f", "failed"), False),
        (RunLostError("r", "died"), True),
        (MissingArtifactError("/a"), True),
        (OSError("disk"), True),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(error: Exception, retryable: bool) -> None:
    assert is_retryable(error) is retryable
    assert issubclass(RunLostError, CtrainError)


class Trainer:
    """Fails with each of these causes in turn, then succeeds."""

    def __init__(self, *causes: Exception) -> None:
        self.causes, self.calls = list(causes), 0

    def fit(self) -> str:
        from ray.train import WorkerGroupError

        self.calls += 1
        if self.causes:
            raise WorkerGroupError("worker failed", {0: OSError("peer closed"), 1: self.causes.pop(0)})
        return "done"


def test_a_run_goes_on_after_lost_workers_as_often_as_the_spec_says() -> None:
    trainer = Trainer(OSError("a"), OSError("b"))
    assert _fit(trainer, "r", 2) == "done"
    assert trainer.calls == 3
    trainer = Trainer(OSError("a"), OSError("b"))
    with pytest.raises(RunLostError, match=r"run r: peer closed \(2 failures\)"):
        _fit(trainer, "r", 1)
    assert trainer.calls == 2


def test_a_refusal_by_one_worker_ends_the_run_whatever_the_others_say() -> None:
    trainer = Trainer(TrainingError("r", "all 3 rows have one label"))
    with pytest.raises(TrainingError, match="one label"):
        _fit(trainer, "r", 5)
    assert trainer.calls == 1


@pytest.mark.parametrize("error", [ValueError("seven"), KeyError("size"), RuntimeError("shape")])
def test_what_user_code_raises_is_named_and_is_not_tried_again(error: Exception) -> None:
    with pytest.raises(UserCodeError) as caught, user_code("shop:view", "on partition 2013-03-01"):
        raise error
    expected = f"shop:view: failed on partition 2013-03-01: {type(error).__name__}: {error}"
    assert str(caught.value) == expected
    assert not is_retryable(caught.value)


@pytest.mark.parametrize(
    "error", [OSError("disk"), MemoryError(), MissingArtifactError("/a"), TrainingError("r", "no rows")]
)
def test_errors_of_the_machine_and_of_ctrain_pass_through_user_code(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, user_code("shop:view", "on partition 2013-03-01"):
        raise error
    assert caught.value is error


def test_a_network_that_fails_in_training_is_named() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise IndexError("index 7 is out of range")

    with pytest.raises(UserCodeError, match="shop:net: failed in forward: IndexError: index 7 is out"):
        run(module=Fails(), wrap=lambda module: Guarded(module, "shop:net"))


def test_a_guarded_network_trains_to_the_same_bits() -> None:
    assert same(run(wrap=lambda module: Guarded(module, "shop:net")).weights, run().weights)


ENCODER = Encoder({"kind": ("a", "b")}, {"size": (0.0, 1.0)}, {"size": (-1.0, 1.0)})


def part(first: int, rows: int) -> Features:
    sizes = np.arange(first, first + rows, dtype=float)
    kinds = np.array(["b" if size % 3 else "a" for size in sizes], dtype=np.str_)
    return Features({"kind": kinds, "size": sizes}, (sizes % 2).astype(np.float32))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_the_rows_evenly_and_none_twice(world: int) -> None:
    parts = [part(0, 5), part(5, 1), part(6, 40), part(46, 4)]
    whole, truth = encode_share("r", parts, ENCODER, 0, 1)
    assert whole[:, 1].tolist() == list(range(50))
    for rank in range(world):
        inputs, labels = encode_share("r", parts, ENCODER, rank, world)
        assert len(labels) == 50 // world
        assert torch.equal(inputs, whole[rank::world][: 50 // world])
        assert torch.equal(labels, truth[rank::world][: 50 // world])


def test_a_rank_encodes_its_own_rows_only(monkeypatch) -> None:
    encoded: list[int] = []
    encode = Encoder.encode

    def watched(self, features):
        encoded.append(len(features["size"]))
        return encode(self, features)

    monkeypatch.setattr(Encoder, "encode", watched)
    encode_share("r", [part(0, 10), part(10, 6)], ENCODER, 1, 2)
    assert encoded == [5, 3]


def test_one_class_is_judged_on_the_rows_of_all_ranks() -> None:
    same = part(0, 10)
    same.label[:] = 1
    with pytest.raises(TrainingError, match="all 10 rows of the window have one label"):
        encode_share("r", [same], ENCODER, 0, 2)
    same.label[1] = 0  # the other rank's
    assert encode_share("r", [same], ENCODER, 0, 2)[1].tolist() == [1] * 5
