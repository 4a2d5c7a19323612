"""Workers under policies that are not the ones of deploy/iam.

Under those every test of this folder runs: conftest.py switches moto's IAM on, roles.py gives each process its role."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.deploy.policies import without
from tests.e2e.audit import ended
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered
from worker.local.stack import ENTITY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


async def test_what_a_policy_lacks_is_refused(bench: Bench) -> None:
    """So that all other tests here say something about the policies."""
    assert bench.roles is not None
    bench.roles.document = without(
        bench.roles.joined("worker.json"), "sqs:GetQueueAttributes", "TakeLaunchMessages"
    )
    worker = await bench.start()
    assert await worker.exit_code() == 1
    assert [denial.permission.action for denial in bench.roles.unexpected()] == ["sqs:GetQueueAttributes"]
    assert "sqs:GetQueueAttributes" in worker.printed()
    bench.roles.lacking = frozenset({"sqs:GetQueueAttributes"})
    bench.workers.clear()  # it prints a sentence for people, no event


@pytest.mark.parametrize("ledger", ["dynamodb"])
async def test_doctor_finds_nothing_missing_in_the_policy(shared_bench: Bench) -> None:
    bench = shared_bench
    assert bench.roles is not None
    # It asks IAM first, and tries the calls when it may not ask; dead letters and tables it looks at where it may.
    bench.roles.lacking = frozenset(
        {"iam:SimulatePrincipalPolicy", "sqs:GetQueueAttributes", "dynamodb:DescribeTable"}
    )
    doctor = await bench.start("doctor", "--json", builder="none", registry="")
    await doctor.exit_code()
    checks = json.loads(doctor.printed())
    bench.workers.clear()  # findings are for people, no events
    (tried,) = [check["detail"] for check in checks if check["name"] == "IAM"]
    assert "sagemaker:ListTrainingJobs" in tried
    assert "dynamodb:UpdateItem" in tried
    assert [check for check in checks if check["verdict"] == "failed"] == []


def _guides_policy(bench: Bench) -> dict[str, Any]:
    """W&B's guide's, with `SageMaker` in its ARNs in lower case, since nothing at all could be done without that; and
    what a worker needs of SQS. Its logs:DescribeLogStreams is on a SageMaker ARN, as in the guide."""
    assert bench.roles is not None
    jobs = ["logs:DescribeLogStreams", "sagemaker:AddTags", "sagemaker:CreateTrainingJob"]
    role = "arn:aws:iam::123456789012:role/launch-training"
    return {
        "Version": "2012-10-17",
        "Statement": [
            *(
                statement
                for statement in bench.roles.joined("worker.json")["Statement"]
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
    assert bench.roles is not None
    bench.roles.document = _guides_policy(bench)
    bench.roles.lacking = frozenset(
        {"logs:DescribeLogStreams", "sagemaker:ListTrainingJobs", "sagemaker:StopTrainingJob"}
    )
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
    assert sorted(told) == sorted(bench.roles.lacking)
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
    assert any(
        told.startswith("LW-PERMISSION-MISSING: The job's log does not come to W&B: DescribeLogStreams")
        for told in warnings
    )
    assert any(
        told.startswith("LW-PERMISSION-MISSING: The job is not stopped, although that was asked for")
        for told in warnings
    )
    companion = bench.companion(pressed)
    assert companion is not None
    assert "ended by itself before it took effect: Stop was pressed" in companion.summary["sagemaker/reason"]
    assert not worker.events("log_round_failed")
    assert not worker.events("status_feed_failed")
