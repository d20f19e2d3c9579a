"""The counts are the whole state: evidence survives restarts, order and merging bit for bit."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ctrain.records import Analysis, ArmCounts, Pace, PairCounts, PairedBlock, canonical, from_json, to_json
from ctrain.rollout import analyse
from ctrain.serving.counters import Counters
from ctrain.serving.split import challenger_answers
from ctrain.spec.rollout import Canary

SPEC = Canary()
STEPS = (0.05, 0.25)


def traffic(seed: int, replicas: list[Counters], requests: int) -> list[tuple[int, float]]:
    """Answer requests with and without keys; gives what each look saw: (requests so far, split)."""
    rng = random.Random(seed)
    looks = []
    for at in range(requests):
        split = STEPS[at * len(STEPS) // requests]
        key = f"client-{rng.randrange(400)}" if rng.random() < 0.5 else None
        challenger = challenger_answers("r", key, split) if key else rng.random() < split
        counters = rng.choice(replicas)
        error, slow = rng.random() < 0.05, rng.choices(range(4), (50, 40, 9, 1))[0]
        counters.arm("r", split, "challenger" if challenger else "champion", error, slow, key)
        if not challenger:
            pair = counters.pair("r")
            pair.pairs += 1
            pair.flipped += rng.random() / 7
            pair.distance += rng.random() / 11
        looks.append((at, split))
    return looks


def look(arms: list[tuple[ArmCounts, ...]], pairs: list[PairCounts], split: float) -> Analysis:
    blocks = [
        PairedBlock(f"day-{n}", 900, 90, {"auc": 0.79 + n / 997}, {"auc": 0.8 + n % 2 / 101})
        for n in range(3)
    ]
    return analyse("r", "canary", split, SPEC, arms, pairs, blocks, pace=Pace(100.0, 1e6))


def test_evidence_after_a_hundred_kills_is_that_of_a_rollout_without_any_bit_for_bit() -> None:
    replicas = [Counters() for _ in range(3)]
    rng = random.Random(1)
    for cut in range(100):
        traffic(cut, replicas, 40)
        arms, pairs = [one.arms() for one in replicas], [pair for one in replicas for pair in one.pairs()]
        before = look(arms, pairs, 0.25)
        # The journal holds canonical JSON: names sorted, so that replicas come back in another order.
        names = [f"{rng.random():.6f}" for _ in replicas]
        text = canonical(
            {name: {"arms": to_json(a), "pairs": to_json(one.pairs())}
             for name, a, one in zip(names, arms, replicas, strict=True)}
        )  # fmt: skip
        kept = json.loads(text)
        again = [from_json(tuple[ArmCounts, ...], one["arms"]) for one in kept.values()]
        paired = [p for one in kept.values() for p in from_json(tuple[PairCounts, ...], one["pairs"])]
        after = look(again, paired, 0.25)
        assert after == before
        assert from_json(Analysis, json.loads(canonical(to_json(after)))) == before


counts = st.builds(
    ArmCounts,
    st.just("r"),
    st.sampled_from((0.05, 0.25)),
    st.sampled_from(("challenger", "champion")),
    st.integers(20, 90),
    st.integers(0, 9),
    st.tuples(st.integers(5, 20), st.integers(2, 5), st.integers(0, 2)),
    st.just(False),
    st.integers(10, 20),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(counts, max_size=5), min_size=1, max_size=4), st.randoms())
def test_keyless_counts_merge_in_any_order(parts: list[list[ArmCounts]], rng: random.Random) -> None:
    whole = [[count for part in parts for count in part]]
    rng.shuffle(parts)
    assert look(list(map(tuple, parts)), [], 0.25) == look(list(map(tuple, whole)), [], 0.25)
