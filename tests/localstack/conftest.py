"""One LocalStack for all tests of this folder; queues and streams have names of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.localstack.process import LocalStack, running_localstack

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_sqs import SQSClient


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def localstack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    async with running_localstack(tmp_path_factory.mktemp("localstack") / "output.log") as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def sqs(localstack: LocalStack) -> AsyncIterator[SQSClient]:
    async with localstack.session().client("sqs", endpoint_url=localstack.endpoint) as client:
        yield client


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def logs(localstack: LocalStack) -> AsyncIterator[CloudWatchLogsClient]:
    async with localstack.session().client("logs", endpoint_url=localstack.endpoint) as client:
        yield client
