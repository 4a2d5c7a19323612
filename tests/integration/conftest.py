"""An AWS endpoint that answers what a test says, and the worker's own clients that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.aws_server import AwsServer, serving_aws
from worker.clients.aws import AwsClients, aws_clients


@pytest.fixture
async def aws_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsServer]:
    async with serving_aws(monkeypatch) as running:
        yield running


@pytest.fixture
async def aws(aws_server: AwsServer) -> AsyncIterator[AwsClients]:
    async with aws_clients() as clients:
        yield clients
