import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from ctrain.records import ArmCounts
from ctrain.rollout import analyse
from ctrain.serving.counters import Counters
from ctrain.serving.split import challenger_answers
from ctrain.spec.rollout import Canary

SPEC = Canary()


def keys_roll_back(seed: int, replicas: int, given: Callable[[list[ArmCounts]], list[ArmCounts]]) -> bool:
    """Whether identical models and 150 clients that are always slow and always fail end a rollout."""
    rng = random.Random(seed)
    counters = [Counters() for _ in range(replicas)]
    for split in SPEC.steps:
        for at in range(1, 1201):
            key = f"client-{rng.randrange(150)}"
            arm = "challenger" if challenger_answers(f"r{seed}", key, split) else "champion"
            rng.choice(counters).arm("r", split, arm, True, 3, key)  # type: ignore[arg-type]
            if at % 200 == 0:
                counts = [given(list(one.arms())) for one in counters]
                if analyse("r", "canary", split, SPEC, counts, []).verdict == "fail":
                    return True
    return False


def arms(
    split: float, challenger: tuple[int, int], champion: tuple[int, int], keyed: bool
) -> list[ArmCounts]:
    """Requests and errors of both arms, of one replica."""
    return [
        ArmCounts("r", split, "challenger", *challenger, keyed=keyed),
        ArmCounts("r", split, "champion", *champion, keyed=keyed),
    ]


def as_keyless(counts: list[ArmCounts]) -> list[ArmCounts]:
    return [replace(count, keyed=False) for count in counts]


def test_clients_that_always_fail_are_no_evidence_however_many_replicas_they_reach() -> None:
    for replicas in (2, 4):
        found = sum(keys_roll_back(seed, replicas, lambda counts: counts) for seed in range(40))
        assert found <= 40 * SPEC.alpha


def test_keys_that_were_added_up_over_replicas_would_be_false_evidence() -> None:
    assert sum(keys_roll_back(seed, 4, as_keyless) for seed in range(40)) > 40 * SPEC.alpha


def test_keyed_evidence_of_each_replica_is_averaged_and_multiplied_with_keyless_evidence() -> None:
    def harm(*counts: list[ArmCounts]) -> float:
        return analyse("r", "canary", 0.25, SPEC, counts, []).metrics[0].harm

    one, other = (arms(0.25, (50, bad), (150, rest), keyed=True) for bad, rest in ((6, 1), (2, 5)))
    keyless = arms(0.25, (50, 4), (150, 3), keyed=False)
    mean = (harm(one) + harm(other)) / 2
    assert harm(one, other) == pytest.approx(mean)
    assert harm(one + keyless, other) == pytest.approx(mean * harm(keyless))
    assert harm(one + one) != pytest.approx(harm(one, one))
