"""The event loop's lag is seen, and the garbage collector is left as a long-lived process wants it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest

from worker.ops.metrics import Metrics
from worker.ops.runtime import settle_garbage_collector, watch_loop_lag


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def late_looks(metrics: Metrics, seconds: str) -> float:
    """Looks that were later than a bucket's bound."""
    total = metrics.registry.get_sample_value("launch_loop_lag_seconds_count") or 0.0
    within = metrics.registry.get_sample_value("launch_loop_lag_seconds_bucket", {"le": seconds}) or 0.0
    return total - within


async def test_a_stall_is_seen() -> None:
    metrics = Metrics()
    watching = asyncio.ensure_future(watch_loop_lag(metrics))
    await asyncio.sleep(0.01)
    time.sleep(0.5)  # noqa: ASYNC251  # the stall
    await asyncio.sleep(0.01)
    watching.cancel()
    assert late_looks(metrics, "0.25") == 1


async def test_a_short_stall_just_behind_a_look_is_seen() -> None:
    metrics = Metrics()
    watching = asyncio.ensure_future(watch_loop_lag(metrics))
    await asyncio.sleep(0)  # the look has just begun
    time.sleep(0.08)  # noqa: ASYNC251  # the stall
    await asyncio.sleep(0.01)
    watching.cancel()
    assert late_looks(metrics, "0.05") == 1


@pytest.mark.usefixtures("collector")
def test_what_lives_as_long_as_the_process_is_not_searched() -> None:
    settle_garbage_collector()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] > 1000
    assert gc.isenabled()
