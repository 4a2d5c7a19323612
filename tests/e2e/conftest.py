"""One stack for all end-to-end tests (moto's state is process-wide); queues, ledger and workers for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiodocker
import pytest
import pytest_asyncio

from tests.deploy.enforcement import Denial, enforced
from tests.e2e.bench import Bench, Clients, LedgerKind, open_bench, open_clients
from worker.local.images import ensure_busybox_image
from worker.local.stack import LocalServices, running_stack
from worker.local.wandb_strict import STRICT

STATE = Path(__file__).parents[2] / ".state"
"""Debian packages for the test image, kept between runs."""


@dataclass(frozen=True)
class Stack:
    """What all tests of this folder share."""

    services: LocalServices
    clients: Clients
    image: str
    denials: list[Denial]
    """What IAM refused: each process of a test runs under the policy that is shipped for it."""

    def bench(
        self, folder: Path, *, ledger: LedgerKind = "sqlite", fifo: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Bench]:
        """A bench for one test, see `open_bench`."""
        return open_bench(
            *(self.services, self.clients, self.image, folder),
            ledger=ledger,
            fifo=fifo,
            denials=self.denials,
        )


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(executor="docker", stop_grace=1) as services:
        assert services.docker is not None
        assert services.ecr is not None, services.missing
        services.wandb.lease_seconds = 3  # what a killed mirror has popped comes back soon
        services.wandb.strict = STRICT
        local = await ensure_busybox_image(services.docker, STATE)
        image = await services.ecr.seed_image(services.docker, local, "launch-dev", "e2e")
        # Also a base image: builds that push elsewhere have no login to pull it with.
        await services.executor.prepare(image)
        try:
            with enforced() as denials:
                async with open_clients(services) as clients:
                    yield Stack(services, clients, image, denials)
        finally:  # only the name: its registry is going away
            with contextlib.suppress(aiodocker.DockerError):
                await services.docker.images.delete(image, noprune=True)


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def no_faults_left(stack: Stack) -> AsyncIterator[None]:
    """What a test breaks is whole again for the next one."""
    yield
    stack.services.wandb.faults.clear()
    stack.services.sagemaker.jobs.refusals.clear()


@pytest_asyncio.fixture(loop_scope="package")
async def bench(stack: Stack, tmp_path: Path) -> AsyncIterator[Bench]:
    """On SQLite."""
    async with stack.bench(tmp_path) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="package")
async def fifo_bench(stack: Stack, tmp_path: Path) -> AsyncIterator[Bench]:
    """On SQLite, with a FIFO queue."""
    async with stack.bench(tmp_path, fifo=True) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "dynamodb"])
def ledger(request: pytest.FixtureRequest) -> LedgerKind:
    kind: LedgerKind = request.param
    return kind


@pytest_asyncio.fixture(loop_scope="package")
async def shared_bench(stack: Stack, tmp_path: Path, ledger: LedgerKind) -> AsyncIterator[Bench]:
    """For more than one worker: on SQLite and on DynamoDB."""
    async with stack.bench(tmp_path, ledger=ledger) as opened:
        yield opened
