import pytest
from controller.simulation import MUTANTS, Violation, history

SEEDS = 40
MUTANT_SEEDS = 40


def test_no_simulated_history_breaks_an_invariant() -> None:
    assert sum(history(seed) for seed in range(SEEDS)) > 100, "the histories must hold crashes"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_catches_a_controller_that_is_broken_on_purpose(mutant: str) -> None:
    for seed in range(MUTANT_SEEDS):
        try:
            history(seed, mutant)
        except (Violation, AssertionError, KeyError):
            return
    pytest.fail(f"{mutant} went unnoticed in {MUTANT_SEEDS} histories")
