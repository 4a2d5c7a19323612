"""A W&B that limits what it is asked: several jobs and workers meet its limits, and nothing is lost or told twice.

All tests of this folder run against the strict double (`STRICT`): overlapping or gapped lines of two writers are
refused there, and `audit` holds each run to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered
from worker.local.wandb_strict import CONSOLE_LINES, STRICT, Strictness

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture
def limits(bench: Bench) -> Iterator[None]:
    """So few posts and queries that several jobs cannot but meet the limits."""
    wandb = bench.services.wandb
    wandb.strict = Strictness(
        writers=True, console_lines=CONSOLE_LINES, run_posts=0.7, project_posts=4, queries=1.5, revives=True
    )
    wandb.counts["limited:file_stream"] = wandb.counts["limited:graphql"] = 0
    yield
    wandb.strict = STRICT


async def test_rate_limits_are_ridden_out(bench: Bench, limits: None) -> None:
    cases = [bench.launch(numbered(5), pause=0.2) for _ in range(3)]
    workers = [await bench.started(companion_heartbeat="1") for _ in range(2)]
    await bench.send(*cases)
    for case in cases:
        await bench.lines_in_wandb(case, 1)
    await workers[0].kill()
    await audit(bench, *cases)
    counts = bench.services.wandb.counts
    assert counts["limited:file_stream"] > 0
    assert counts["limited:graphql"] > 0
