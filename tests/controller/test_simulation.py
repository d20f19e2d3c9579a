import pytest
from controller.simulation import MUTANTS, many, outcome

SEEDS = 300
MUTANT_SEEDS = 300


def test_no_simulated_history_breaks_an_invariant() -> None:
    crashes, violations = many(range(SEEDS))
    assert not violations
    assert crashes > 30 * SEEDS, "the histories must hold crashes"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_catches_a_controller_that_is_broken_on_purpose(mutant: str) -> None:
    assert any(outcome(seed, mutant)[1] for seed in range(MUTANT_SEEDS))
