from fakes import FakeClock

from ctrain.controller.clock import SLEW, SteadyClock


def moved(wall: FakeClock, monotonic: FakeClock, seconds: float) -> None:
    wall.now += seconds
    monotonic.now += seconds


def test_the_clock_keeps_pace_with_both_clocks_while_they_agree() -> None:
    wall, monotonic = FakeClock(1e6), FakeClock(5.0)
    clock = SteadyClock(0.0, wall, monotonic)
    moved(wall, monotonic, 10.0)
    assert clock() == 1e6 + 10.0


def test_a_wall_clock_that_jumps_bends_the_clock_and_never_turns_it_back() -> None:
    wall, monotonic = FakeClock(1e6), FakeClock(5.0)
    clock = SteadyClock(0.0, wall, monotonic)
    wall.now -= 3600.0
    moved(wall, monotonic, 10.0)
    assert clock() == 1e6 + 10.0 * (1 - SLEW)
    wall.now += 7200.0
    moved(wall, monotonic, 10.0)
    assert clock() == 1e6 + 10.0 * (1 - SLEW) + 10.0 * (1 + SLEW)


def test_a_clock_that_started_an_hour_ahead_meets_the_wall_clock_again() -> None:
    wall, monotonic = FakeClock(1e6), FakeClock(0.0)
    clock = SteadyClock(1e6 + 3600.0, wall, monotonic)
    assert clock() == 1e6 + 3600.0
    moved(wall, monotonic, 3600.0 / SLEW + 1.0)
    assert clock() == wall.now
