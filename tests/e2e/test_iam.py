"""Workers under the policies of deploy/iam: what they may do is enough."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.deploy.enforcement import Permission, enforced, new_role
from tests.deploy.policies import policy
from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.code import code_bench
from tests.e2e.launches import numbered

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


@contextlib.contextmanager
def under(document: Mapping[str, Any], bench: Bench) -> Iterator[list[Permission]]:
    """The workers of `bench` have a role with this policy only; yields what they were refused."""
    role = new_role(f"worker-{uuid.uuid4().hex[:8]}", document)
    bench.environment |= role.environment
    with enforced() as refused:
        yield refused


def filled(name: str, bench: Bench, **values: str) -> dict[str, Any]:
    """A policy for the resources of `bench`."""
    return policy(
        name,
        QUEUE=bench.queue_url.rpartition("/")[2],
        DEAD_LETTER_QUEUE=bench.dlq_url.rpartition("/")[2],
        TABLE=bench.ledger.removeprefix("dynamodb://"),
        DEPLOYMENT=bench.deployment,
        **values,
    )


@pytest.mark.parametrize("ledger", ["dynamodb"])
async def test_ready_images(shared_bench: Bench) -> None:
    """A job that ends, one that is stopped, one that is refused; and another worker that takes over."""
    bench = shared_bench
    with under(filled("worker.json", bench), bench) as refused:
        worker = await bench.started()
        done = bench.launch(numbered(3))
        stopped = bench.launch(numbered(2), tail="sleep 60")
        await bench.send(done, stopped, "{}")
        await bench.lines_in_wandb(stopped, 2)
        await worker.kill()
        await bench.started()
        bench.press_stop(stopped)
        await audit(bench, done)
        await audit(
            bench, stopped, end="stopped by this worker", reason="Stop was pressed in W&B", exit_code=1
        )
        assert len(await bench.dead_letters(1)) == 1
    assert refused == []


@pytest.mark.parametrize("ledger", ["dynamodb"])
async def test_builds(shared_bench: Bench) -> None:
    bench = shared_bench
    async with code_bench(bench) as code:
        document = filled("worker-builds.json", bench, REPOSITORY=code.repository)
        document["Statement"] += filled("optional/create-repository.json", bench, REPOSITORY=code.repository)[
            "Statement"
        ]
        with under(document, bench) as refused:
            await bench.started()
            case = code.launch(await code.upload(code.script(lines := numbered(3))), lines)
            await bench.send(case)
            await code.audit(case)
            await bench.end_workers()
        assert refused == []
