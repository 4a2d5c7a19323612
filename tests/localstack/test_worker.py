"""The worker as a process, its queue and its jobs' logs on LocalStack; SageMaker, ECR and W&B are the local stack's."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import pytest_asyncio

from tests.e2e.audit import audit
from tests.e2e.bench import Bench, Clients, open_bench
from tests.e2e.launches import numbered
from tests.localstack.process import ROOT, LocalStack
from worker.local.aws import ACCESS_KEY, REGION
from worker.local.images import ensure_busybox_image
from worker.local.logs import TRAINING_JOBS_GROUP
from worker.local.stack import LocalServices, running_stack

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


class LocalStackLogs:
    """Containers' output goes to LocalStack. It blocks for some milliseconds each time, which tests can bear."""

    def __init__(self, endpoint: str) -> None:
        self._client: Any = botocore.session.get_session().create_client(
            "logs",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=ACCESS_KEY,
        )
        self._streams: set[str] = set()

    def put(self, stream: str, events: Sequence[tuple[int, str]]) -> None:
        if stream not in self._streams:
            with contextlib.suppress(self._client.exceptions.ResourceAlreadyExistsException):
                self._client.create_log_group(logGroupName=TRAINING_JOBS_GROUP)
            with contextlib.suppress(self._client.exceptions.ResourceAlreadyExistsException):
                self._client.create_log_stream(logGroupName=TRAINING_JOBS_GROUP, logStreamName=stream)
            self._streams.add(stream)
        self._client.put_log_events(
            logGroupName=TRAINING_JOBS_GROUP,
            logStreamName=stream,
            logEvents=[{"timestamp": timestamp, "message": message} for timestamp, message in events],
        )

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnLocalStack(LocalServices):
    """The local stack with two of its services elsewhere."""

    localstack: str

    @property
    def environment(self) -> dict[str, str]:
        elsewhere = ("AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS")
        # No super() without arguments in a class with slots (a dataclass makes a second class).
        return {**LocalServices.environment.fget(self), **dict.fromkeys(elsewhere, self.localstack)}  # type: ignore[attr-defined]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def services(localstack: LocalStack) -> AsyncIterator[OnLocalStack]:
    with contextlib.closing(LocalStackLogs(localstack.endpoint)) as logs:
        async with running_stack(executor="docker", stop_grace=1, logs=logs) as stack:
            given = {field.name: getattr(stack, field.name) for field in fields(stack)}
            yield OnLocalStack(**given, localstack=localstack.endpoint)


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def image(services: OnLocalStack) -> str:
    assert services.docker is not None
    assert services.ecr is not None, services.missing
    local = await ensure_busybox_image(services.docker, ROOT / ".state")
    return await services.ecr.seed_image(services.docker, local, "launch-dev", "localstack")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def clients(services: OnLocalStack, sqs: Any, logs: Any) -> AsyncIterator[Clients]:
    session, url = services.aws.session(), services.aws_endpoint
    async with (
        session.client("sagemaker", endpoint_url=url) as sagemaker,
        session.client("dynamodb", endpoint_url=url) as dynamodb,
        session.client("s3", endpoint_url=url) as s3,
    ):
        yield Clients(sqs, sagemaker, logs, dynamodb, s3)


@pytest_asyncio.fixture(loop_scope="package", params=["standard", "fifo"])
async def bench(
    request: pytest.FixtureRequest, services: OnLocalStack, clients: Clients, image: str, tmp_path: Path
) -> AsyncIterator[Bench]:
    async with open_bench(services, clients, image, tmp_path, fifo=request.param == "fifo") as opened:
        yield opened


def ordering(bench: Bench, unique: str) -> dict[str, str]:
    """What a FIFO queue wants with a message."""
    fifo = bench.queue_url.endswith(".fifo")
    return {"MessageGroupId": unique, "MessageDeduplicationId": unique} if fifo else {}


async def test_from_message_to_finished_log(bench: Bench) -> None:
    await bench.started()
    cases = [bench.launch(numbered(6), hosts=1 + number) for number in range(3)]
    for case in cases:
        await bench.send(case, **ordering(bench, case.run_id))
    await audit(bench, *cases)


async def test_a_killed_worker_is_taken_over_without_a_gap_or_a_double(bench: Bench) -> None:
    first = await bench.started()
    case = bench.launch(numbered(30), pause=0.2)
    await bench.send(case, **ordering(bench, case.run_id))
    await bench.lines_in_wandb(case, 5)
    await first.kill()
    second = await bench.started()
    await audit(bench, case)
    second.send_signal(signal.SIGTERM)
    assert await second.exit_code() == 0


async def test_a_refused_message_is_in_the_dead_letter_queue(bench: Bench) -> None:
    await bench.started()
    await bench.send('{"runSpec": {}}', **ordering(bench, "bad"))
    (letter,) = await bench.dead_letters(1)
    assert letter["MessageAttributes"]["code"]["StringValue"] == "LW-BAD-MESSAGE"
