"""SQS delivers at least once; a launch is one training job all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.audit import audit, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

OWN_KEY = "0ddba11" * 6


async def test_the_same_launch_in_many_messages_at_once(bench: Bench) -> None:
    case = bench.launch(numbered(3))
    await bench.send(*[case] * 3)
    await bench.started()
    await audit(bench, case)


async def test_the_same_launch_again_after_its_end(bench: Bench) -> None:
    case = bench.launch(numbered(3))
    worker = await bench.started()
    await bench.send(case)
    await audit(bench, case)
    (again,) = await bench.send(case)
    await worker.wait_for("launch_known", message_id=again, state="finished")
    await audit(bench, case)


async def test_a_duplicate_while_another_worker_is_at_work_on_it(shared_bench: Bench) -> None:
    """Its own W&B key keeps the launch in leg 1 while SageMaker throttles; the duplicate goes to the other worker."""
    bench = shared_bench
    case = bench.launch(numbered(3), _wandb_api_key=OWN_KEY)
    bench.throttle(True)
    first = await bench.started(slots="1")
    await bench.send(case)
    await first.wait_for("submit_throttled")
    second = await bench.started()
    (duplicate,) = await bench.send(case)
    busy = await second.wait_for("launch_busy", message_id=duplicate)
    assert first.events("worker_started")[0]["worker"] in busy["why"]
    assert await bench.depth() == (0, 2), "hidden, not deleted"
    bench.throttle(False)
    await audit(bench, case)


async def test_fifo_queue(fifo_bench: Bench) -> None:
    bench = fifo_bench
    cases = [bench.launch(numbered(3)) for _ in range(3)]
    worker = await bench.started()
    for case in cases:
        await bench.send(case, MessageGroupId=case.launch_id, MessageDeduplicationId=case.launch_id)
    (bad,) = await bench.send("no JSON", MessageGroupId="bad", MessageDeduplicationId="bad")
    await worker.wait_for("launch_refused", message_id=bad)
    await audit(bench, *cases)
    (letter,) = await bench.dead_letters(1)
    assert letter["Body"] == "no JSON"


async def test_a_launch_with_its_own_key(bench: Bench) -> None:
    tail = 'case "$WANDB_API_KEY" in *0ddba11) echo own;; *) echo other;; esac'
    case = bench.launch(tail=tail, _wandb_api_key=OWN_KEY)
    bench.throttle(True)
    worker = await bench.started()
    await bench.send(case)
    await worker.wait_for("submit_throttled")
    waiting = await bench.record(case)
    assert waiting is not None
    assert waiting.private_key
    assert waiting.request is not None
    assert OWN_KEY not in _ledger_bytes(bench.folder)
    assert await bench.depth() == (0, 1), "the message is kept: only it has the key"
    bench.throttle(False)
    await worker.wait_for("job_finished")
    described = await bench.clients.sagemaker.describe_training_job(TrainingJobName=case.job_name)
    assert described["Environment"]["WANDB_API_KEY"] == OWN_KEY
    run = bench.companion(case)
    assert run is not None
    assert run.console_text() == ["own"]
    await queue_empty(bench)
    assert OWN_KEY not in _ledger_bytes(bench.folder)
    assert OWN_KEY not in worker.printed()
    assert OWN_KEY not in json.dumps(bench.services.wandb.dump())


def _ledger_bytes(folder: Path) -> str:
    """Everything that SQLite has on the disk."""
    return "".join(file.read_bytes().decode("latin-1") for file in folder.glob("ledger-*.db*"))
