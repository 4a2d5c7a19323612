"""A worker that delivers from a harsh CloudWatch, in virtual time."""

from __future__ import annotations

import pytest

from tests.fakes.cloudwatch_logs import CloudWatchLogs
from tests.unit.delivery.harsh import Clock, Delivering, aws_now, use_virtual_time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_virtual_time(monkeypatch)


@pytest.fixture
async def logs() -> CloudWatchLogs:
    return CloudWatchLogs(aws_now)


@pytest.fixture
async def worker(logs: CloudWatchLogs) -> Delivering:
    return Delivering(logs)
