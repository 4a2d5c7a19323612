"""Workers under the policies of deploy/iam, and under the one of W&B's guide."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.deploy.enforcement import Permission, enforced, new_role
from tests.deploy.policies import policy
from tests.e2e.audit import audit, ended
from tests.e2e.bench import Bench
from tests.e2e.code import code_bench
from tests.e2e.launches import numbered
from worker.local.stack import ENTITY

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


def _guides_policy(bench: Bench) -> dict[str, Any]:
    """W&B's guide's, with `SageMaker` in its ARNs in lower case, since nothing at all could be done without that; and
    what a worker needs of SQS. Its logs:DescribeLogStreams is on a SageMaker ARN, as in the guide."""
    jobs = ["logs:DescribeLogStreams", "sagemaker:AddTags", "sagemaker:CreateTrainingJob"]
    role = "arn:aws:iam::123456789012:role/launch-training"
    return {
        "Version": "2012-10-17",
        "Statement": [
            *(
                statement
                for statement in filled("worker.json", bench)["Statement"]
                if all(action.startswith("sqs:") for action in statement["Action"])
            ),
            {
                "Effect": "Allow",
                "Action": [*jobs, "sagemaker:DescribeTrainingJob"],
                "Resource": "arn:aws:sagemaker:us-east-1:123456789012:*",
            },
            {"Effect": "Allow", "Action": ["iam:PassRole"], "Resource": role},
        ],
    }


async def test_with_only_the_guides_policy(bench: Bench) -> None:
    """Jobs are submitted, followed and ended; each missing action is told once, with its cost."""
    document = _guides_policy(bench)
    with under(document, bench) as refused:
        worker = await bench.started(log_drain_limit="1")
        done, failed = bench.launch(numbered(2)), bench.launch(numbered(2), tail="exit 3")
        item = bench.services.wandb.push(ENTITY, "guide", {})
        pressed = bench.launch(numbered(1), tail="sleep 6", item_id=item.id)
        await bench.send(done, failed, pressed, "{}")
        await worker.wait_for("companion_opened", training_job=pressed.job_name)
        bench.press_stop(pressed)
        await ended(bench, done, failed, pressed)
        assert len(await bench.dead_letters(1)) == 1
    ends = {event["training_job"]: event["end"] for event in worker.events("job_finished")}
    assert ends == {done.job_name: "completed", failed.job_name: "failed", pressed.job_name: "completed"}
    told = [event["action"] for event in worker.events("permission_missing")]
    assert sorted(told) == [
        "logs:DescribeLogStreams",
        "sagemaker:ListTrainingJobs",
        "sagemaker:StopTrainingJob",
    ]
    assert {permission.action for permission in refused} == set(told)
    for event in worker.events("permission_missing"):
        assert event["level"] == "warning"
        assert event["cost"]
    for case in (done, failed, pressed):
        record = await bench.record(case)
        assert record is not None
        assert "DescribeLogStreams" in record.log.undelivered
        assert len(bench.jobs(case)) == 1
    warnings = [warning["message"] for warning in item.warnings]
    assert len(warnings) == 2, "each once"
    assert any(told.startswith("The job's log does not come to W&B: DescribeLogStreams") for told in warnings)
    assert any(told.startswith("The job is not stopped, although that was asked for") for told in warnings)
    companion = bench.companion(pressed)
    assert companion is not None
    assert "ended by itself before it took effect: Stop was pressed" in companion.summary["sagemaker/reason"]
    assert not worker.events("log_round_failed")
    assert not worker.events("status_feed_failed")
