"""Token buckets as AWS keeps them."""

from __future__ import annotations

from bench.simulator.quotas import Quotas


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.set({"Filter": 5.0})
    assert [quotas.admit("Filter") for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now = 0.2
    assert [quotas.admit("Filter") for _ in range(2)] == [True, False]
    assert quotas.calls == {"Filter": 9}
    assert quotas.throttled == {"Filter": 3}


def test_no_more_is_saved_up_than_a_second() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.set({"Create": 1.0, "Slow": 0.5})
    clock.now = 1000.0
    assert [quotas.admit("Create") for _ in range(2)] == [True, False]
    assert [quotas.admit("Slow") for _ in range(2)] == [True, False]


def test_apis_without_a_quota_are_free_and_counted() -> None:
    quotas = Quotas(Clock())
    quotas.set({"Create": 1.0})
    quotas.set({"Create": None})
    assert all(quotas.admit("Create") for _ in range(100))
    quotas.reset_counts()
    assert not quotas.calls
