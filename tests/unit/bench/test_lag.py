"""The event loop's lag as the bench reads it off the worker's own metric."""

from __future__ import annotations

import pytest

from bench.lag import LoopLag
from worker.ops.metrics import Metrics


def test_only_what_came_since_counts() -> None:
    metrics = Metrics()
    metrics.loop_lag.observe(0.9)
    before = LoopLag.of(metrics.text().decode())
    for late in [0.002] * 150 + [0.06]:
        metrics.loop_lag.observe(late)
    lag = LoopLag.of(metrics.text().decode()).since(before)
    assert lag.summary() == {"p99": 0.005, "max": 0.075}


def test_without_looks_there_is_no_lag() -> None:
    empty = LoopLag.of(Metrics().text().decode())
    assert empty.summary() == {"p99": 0.0, "max": 0.0}
    assert empty.since(empty).quantile(1.0) == 0.0


def test_a_stall_beyond_the_last_bucket_is_a_number() -> None:
    metrics = Metrics()
    metrics.loop_lag.observe(7.0)
    assert LoopLag.of(metrics.text().decode()).quantile(1.0) == 60.0


def test_a_worker_that_does_not_answer_is_not_taken_for_one_without_lag() -> None:
    with pytest.raises(ValueError, match="launch_loop_lag_seconds"):
        LoopLag.of("")
