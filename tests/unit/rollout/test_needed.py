import numpy as np
import pytest

from ctrain.records import Analysis, ArmCounts, MetricAnalysis, Pace, PairCounts
from ctrain.rollout import analyse
from ctrain.spec.rollout import Canary

SPEC = Canary()
DAY = 86400.0


def rolled(
    requests: int,
    errors: tuple[int, int] = (0, 0),
    split: float = 0.25,
    pace: Pace | None = None,
    keyed: bool = False,
) -> Analysis:
    """A look at a canary whose models are alike, with these requests of both arms."""
    sent = round(requests * split), requests - round(requests * split)
    arms = [
        ArmCounts("r", split, name, n, bad, (n // 2, n // 10, n // 100), keyed, n - bad)
        for name, n, bad in zip(("challenger", "champion"), sent, errors, strict=True)
    ]
    return analyse("r", "canary", split, SPEC, [arms], [PairCounts("r", 300, 9.0)], pace=pace)


def of(analysis: Analysis, name: str) -> MetricAnalysis:
    return next(metric for metric in analysis.metrics if metric.metric == name)


@pytest.mark.parametrize("name", ["errors", "latency"])
@pytest.mark.parametrize("already", [0, 500, 1500])
def test_as_many_requests_as_were_said_to_be_needed_are_about_enough(name: str, already: int) -> None:
    needed = of(rolled(already), name).needed
    assert needed is not None
    assert needed > 0
    whole = already + round(needed / 0.25)
    assert of(rolled(round(1.1 * whole) + 200), name).state == "enough"
    assert of(rolled(round(0.5 * whole)), name).state == "gathering"


def test_what_is_needed_shrinks_as_requests_come_and_grows_with_errors_of_both_arms() -> None:
    shrinking = [of(rolled(requests), "errors").needed for requests in (0, 500, 1000, 1500)]
    assert shrinking == sorted(shrinking, reverse=True)
    noisy = of(rolled(1000, (3, 8)), "errors").needed
    assert noisy is not None
    assert noisy > 2 * (shrinking[2] or 0)


def test_minutes_follow_from_the_pace_of_the_present_step() -> None:
    analysis = rolled(1000, pace=Pace(seconds=100.0, left=DAY))
    errors = of(analysis, "errors")
    assert errors.minutes == pytest.approx((errors.needed or 0) / 2.5 / 60)
    assert errors.state == "gathering"
    assert "at the present rate" in errors.text
    assert analysis.minutes == max(metric.minutes or 0.0 for metric in analysis.metrics[:2])


def test_draws_of_earlier_steps_do_not_count_into_the_present_pace() -> None:
    earlier = [ArmCounts("r", 0.05, "champion", 100_000, 0, (50_000, 10_000, 1_000), False, 100_000)]
    arms = [ArmCounts("r", 0.25, "champion", 75, 0, (37, 7, 0), False, 75)]
    pace = Pace(100.0, DAY)
    with_earlier = analyse("r", "canary", 0.25, SPEC, [[*earlier, *arms]], [], pace=pace)
    alone = analyse("r", "canary", 0.25, SPEC, [arms], [], pace=pace)
    for name in ("latency", "errors"):
        one, other = of(with_earlier, name), of(alone, name)
        if one.needed and other.needed:
            assert (one.minutes or 0) / one.needed == pytest.approx((other.minutes or 0) / other.needed)


def test_low_traffic_is_named_and_never_passes() -> None:
    analysis = rolled(40, pace=Pace(seconds=3600.0, left=3600.0))
    assert analysis.state == "low_traffic"
    assert analysis.verdict == "continue"
    assert "low traffic" in analysis.reason
    assert of(analysis, "errors").state == "low_traffic"


def test_no_traffic_at_all_is_low_traffic_after_a_while_and_not_in_the_first_seconds() -> None:
    nothing = analyse("r", "canary", 0.25, SPEC, [], [], pace=Pace(3600.0, DAY))
    assert (nothing.state, nothing.verdict, nothing.minutes) == ("low_traffic", "continue", None)
    assert analyse("r", "canary", 0.25, SPEC, [], [], pace=Pace(2.0, DAY)).state == "gathering"


def test_a_shadow_without_enough_mirrored_requests_says_how_many_are_needed() -> None:
    analysis = analyse("r", "shadow", 0.0, SPEC, [], [PairCounts("r", 50, 1.0)], pace=Pace(10.0, DAY))
    assert analysis.verdict == "continue"
    agreement = of(analysis, "agreement")
    assert (agreement.needed, agreement.unit) == (150, "mirrored")
    assert agreement.minutes == pytest.approx(0.5)


def test_without_a_clock_requests_are_told_and_no_minutes() -> None:
    errors = of(rolled(400), "errors")
    assert errors.needed is not None
    assert (errors.minutes, errors.state) == (None, "gathering")


def test_errors_of_a_third_of_all_requests_leave_nothing_to_hope_for() -> None:
    errors = of(rolled(3000, (250, 750)), "errors")
    assert (errors.needed, errors.state) == (None, "gathering")
    assert "cannot be told" in errors.text


def test_each_replica_gathers_evidence_of_its_own_on_keys() -> None:
    pooled = of(rolled(1000), "errors").needed
    arms = [
        [
            ArmCounts("r", 0.25, "challenger", 125, 0, (62, 12, 1), True, 125),
            ArmCounts("r", 0.25, "champion", 375, 0, (187, 37, 3), True, 375),
        ]
        for _ in range(2)
    ]
    keyed = of(analyse("r", "canary", 0.25, SPEC, arms, []), "errors").needed
    assert pooled is not None
    assert keyed is not None
    assert keyed > 1.5 * pooled


def test_a_rollout_with_all_its_evidence_needs_nothing() -> None:
    analysis = rolled(20_000, pace=Pace(100.0, DAY))
    assert (analysis.verdict, analysis.state, analysis.minutes) == ("pass", "enough", 0.0)
    assert all(np.isfinite(metric.harm) for metric in analysis.metrics)
