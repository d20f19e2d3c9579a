import threading

import pytest

from ctrain.errors import (
    CorruptArtifactError,
    MissingArtifactError,
    StorageError,
    UserCodeError,
    WeightsError,
)
from ctrain.records import LiveDocument, Slot
from ctrain.serving.weights import REFUSALS, Weights, _blamed_on
from ctrain.storage import Root


class FakeModel:
    threshold = 0.5

    def __init__(self, slot):
        self.version, self.sha256, self.columns = slot.version, slot.sha256, {}


class Loads:
    """A loader that plays back faults by version, then loads; counts its tries."""

    def __init__(self, **faults):
        self.faults, self.tries = faults, []
        self.done = threading.Condition()

    def __call__(self, root, slot):
        with self.done:
            self.tries.append(slot.version)
            self.done.notify_all()
        faults = self.faults.get(slot.version, [])
        if faults:
            raise faults.pop(0)
        return FakeModel(slot)


def document(generation, epoch=1, **slots):
    filled = {name: Slot(version, f"v-{version}", f"sha-{version}") for name, version in slots.items()}
    return LiveDocument("p", epoch, generation, **filled)


@pytest.fixture
def build(tmp_path):
    made = []

    def make(load, changed=lambda live: None):
        made.append(Weights("p", Root(tmp_path), load, changed, pause=0.005))
        return made[-1]

    yield make
    for weights in made:
        weights.close()


def test_storage_that_is_away_is_asked_again_and_refuses_nothing(build):
    faults = [
        OSError("timed out"),
        MissingArtifactError("x"),
        StorageError("y"),
        ZeroDivisionError(),
        MemoryError(),
    ]
    loads = Loads(a=faults)
    weights = build(loads)
    weights.offer(document(1, champion="a"))
    assert weights.wait(5)
    assert weights.resident == {"a": "sha-a"}
    assert weights.refused == {}
    assert loads.tries == ["a"] * 6


@pytest.mark.parametrize(
    "fault",
    [WeightsError("a", "is bad"), CorruptArtifactError("a", "x", "y"), UserCodeError("m:f", "is gone")],
)
def test_weights_that_must_not_serve_are_refused_once(build, fault):
    loads = Loads(a=[fault])
    weights = build(loads)
    weights.offer(document(1, champion="a"))
    assert weights.wait(5)
    assert weights.resident == {}
    assert list(weights.refused) == ["a"]
    weights.offer(document(2, champion="a"))
    assert weights.wait(5)
    assert (weights.resident, weights.refused) == ({"a": "sha-a"}, {})


def test_a_slot_that_storage_does_not_give_keeps_no_other_slot_waiting(build):
    loads = Loads(a=[OSError()] * 3)
    weights = build(loads)
    weights.offer(document(1, challenger="a", champion="b"))
    with loads.done:
        assert loads.done.wait_for(lambda: len(loads.tries) >= 5, 5)
    assert loads.tries[:2] == ["b", "a"]
    assert weights.resident["b"] == "sha-b"


def test_a_schema_that_cannot_be_built_refuses_its_version_and_the_loader_goes_on(build):
    def changed(live):
        if live.challenger is not None:
            raise TypeError("no such kind of column")

    weights = build(Loads(), changed)
    weights.offer(document(1, champion="a"))
    assert weights.wait(5)
    weights.offer(document(2, champion="a", challenger="b"))
    until(lambda: "b" in weights.refused)
    assert weights.alive
    assert weights.now.champion.version == "a"
    weights.offer(document(3, champion="c"))
    assert weights.wait(5)
    assert weights.now.champion.version == "c"


def until(done):
    """Wait, within a bound, for what the loader's thread does."""
    pause = threading.Event()
    for _ in range(1000):
        if done():
            return
        pause.wait(0.005)
    pytest.fail("it never happened")


def test_a_resident_champion_whose_schema_cannot_be_built_is_refused_and_the_old_one_serves(build):
    def changed(live):
        if live.champion.version == "b":
            raise TypeError("no such kind of column")

    weights = build(Loads(), changed)
    weights.offer(document(1, champion="a", previous="b"))
    assert weights.wait(5)
    until(lambda: "b" in weights.resident)
    assert weights.offer(document(2, champion="b"))
    assert list(weights.refused) == ["b"]
    assert weights.now.champion.version == "a"


def test_the_loader_outlives_what_nobody_foresaw(build, monkeypatch):
    weights = build(Loads())
    faults = [ZeroDivisionError()]
    missing = weights._missing

    def broken(tried=()):
        if faults:
            raise faults.pop()
        return missing(tried)

    monkeypatch.setattr(weights, "_missing", broken)
    weights.offer(document(1, champion="a"))
    assert weights.wait(5)
    assert weights.alive
    assert "a" in weights.resident


def test_waiting_ends_when_the_time_is_over(build):
    gate = threading.Event()
    weights = build(lambda root, slot: (gate.wait(10), FakeModel(slot))[1])
    weights.offer(document(1, champion="a"))
    assert not weights.wait(0.02)
    gate.set()
    assert weights.wait(5)


def test_an_operators_document_gives_way_to_the_one_in_storage(build, tmp_path):
    Root(tmp_path).write_live(document(4, champion="a"))
    weights = build(Loads())
    weights.offer(document(99, epoch=0, champion="b"))
    until(lambda: weights.now.champion is not None and weights.now.champion.version == "a")
    assert weights.wanted == document(4, champion="a")


def test_what_user_code_raises_refuses_the_version_and_storage_does_not():
    with pytest.raises(WeightsError, match="KeyError"), _blamed_on("a"):
        raise KeyError("column")
    for error in (OSError("away"), MissingArtifactError("x"), MemoryError()):
        with pytest.raises(type(error)) as raised, _blamed_on("a"):
            raise error
        assert not isinstance(raised.value, REFUSALS)
