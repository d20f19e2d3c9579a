import asyncio
import threading
import time

import pytest
import ray

from ctrain.serving.link import Calls, ControllerAwayError, ControllerBusyError, ControllerLink, Puller


class HungLink:
    """A controller that answers when `gate` is open."""

    def __init__(self):
        self.gate, self.calls = threading.Event(), 0

    def call(self, method, *arguments, timeout):
        self.calls += 1
        assert self.gate.wait(10)
        return method


def test_calls_beyond_the_bound_are_refused_at_once_and_later_ones_go_through():
    link = HungLink()
    calls = Calls(link, most=2)

    async def ask():
        waiting = [asyncio.ensure_future(calls.call("why", timeout=1.0)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ControllerBusyError):
            await calls.call("why", timeout=1.0)
        link.gate.set()
        first = await asyncio.gather(*waiting)
        return [*first, await _until_free(calls)]

    assert asyncio.run(ask()) == ["why", "why", "status"]
    calls.close()


async def _until_free(calls):
    while True:  # a call is free again when its thread has ended
        try:
            return await calls.call("status", timeout=1.0)
        except ControllerBusyError:
            await asyncio.sleep(0)


def test_a_client_that_goes_away_does_not_stop_a_call_half_way():
    link, done = HungLink(), threading.Event()
    calls = Calls(link, most=1)
    link.call = lambda method, timeout: (link.gate.wait(10), done.set())

    async def ask():
        task = asyncio.ensure_future(calls.call("operate", timeout=1.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        link.gate.set()

    asyncio.run(ask())
    assert done.wait(5)
    calls.close()


def test_a_look_up_that_hangs_ends_with_the_time_out_and_is_made_once(monkeypatch):
    gate, looks = threading.Event(), []

    def hang(name, namespace):
        looks.append(name)
        assert gate.wait(10)
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "get_actor", hang)
    link = ControllerLink("ns")
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ControllerAwayError):
            link.call("status", timeout=0.05)
    assert time.monotonic() - began < 5
    assert len(looks) == 1
    gate.set()
    with pytest.raises(ControllerAwayError, match="no such actor"):
        link.call("status", timeout=5)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: looks.append("again"))
    with pytest.raises(ControllerAwayError, match="AttributeError"):
        link.call("status", timeout=5)
    assert looks[-1] == "again"


def test_the_puller_outlives_what_nobody_foresaw():
    took, second = [], threading.Event()

    def exchange():
        took.append(len(took))
        if len(took) == 1:
            raise ZeroDivisionError
        if len(took) == 2:
            return {"generation": 1}
        second.set()
        raise ControllerAwayError("away")

    puller = Puller(exchange, lambda document: took.append(document), period=0.005, longest=0.01)
    assert second.wait(5)
    assert puller.alive
    assert {"generation": 1} in took
    puller.close()
