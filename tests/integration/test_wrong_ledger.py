"""A table that is not there ends a service at once, with exit code 2, as it ends every other command."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.fakes.aws_server import AwsError, AwsServer
from worker.clients.aws import AwsClients
from worker.ledger.dynamodb import DynamoDbLedger
from worker.ledger.opening import check_ledger
from worker.local.aws import running_aws


@pytest.mark.parametrize("command", ["run", "mirror"])
async def test_a_wrong_table_is_told_before_the_start(tmp_path: Path, command: str) -> None:
    async with running_aws() as aws:
        async with aws.session().client("sqs", endpoint_url=aws.endpoint) as sqs:
            queue = (await sqs.create_queue(QueueName="q-wrong-ledger"))["QueueUrl"]
        variables = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(tmp_path),
            "LAUNCH_QUEUE_URL": queue,
            "LAUNCH_LEDGER": "dynamodb://gone",
            "LAUNCH_BUILDER": "none",
            "LAUNCH_HTTP_PORT": "0",
            "AWS_ENDPOINT_URL": aws.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": aws.region,
            "WANDB_API_KEY": "k" * 40,
            "WANDB_BASE_URL": "http://127.0.0.1:1",
            "LAUNCH_ENTITY": "acme",
            "LAUNCH_WANDB_QUEUES": "gpu",
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", command, cwd=tmp_path, env=variables, stdout=pipe, stderr=pipe
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    assert process.returncode == 2, err.decode()
    assert "LAUNCH_LEDGER: DynamoDB has no table 'gone'" in err.decode()
    assert b"_started" not in out + err


async def test_a_store_that_does_not_answer_does_not_keep_a_worker_from_starting(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    aws_server.fail_next("Query", AwsError("InternalServerError", status=500))
    await check_ledger(DynamoDbLedger(aws.dynamodb, "table"))
    assert len(aws_server.requests("Query")) == 1
