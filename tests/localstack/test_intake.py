"""The SQS adapter, leases and the receiver on LocalStack's queues."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from worker.errors import SettingsError
from worker.intake.lease import Leases
from worker.intake.receiver import Receiver
from worker.intake.sqs import LaunchQueue, SqsMessage, queue_facts
from worker.launch.outcome import Outcome, Verdict
from worker.ops.metrics import Metrics

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def create(sqs: SQSClient, suffix: str = "") -> LaunchQueue:
    """A queue with a DLQ of its own."""
    unique = uuid.uuid4().hex[:8]
    kind: dict[Any, str] = {"FifoQueue": "true"} if suffix else {}
    dlq = (await sqs.create_queue(QueueName=f"dlq-{unique}{suffix}", Attributes=kind))["QueueUrl"]
    asked = await sqs.get_queue_attributes(QueueUrl=dlq, AttributeNames=["QueueArn"])
    redrive = json.dumps({"deadLetterTargetArn": asked["Attributes"]["QueueArn"], "maxReceiveCount": 1000})
    created = await sqs.create_queue(
        QueueName=f"launches-{unique}{suffix}", Attributes={**kind, "RedrivePolicy": redrive}
    )
    return LaunchQueue(sqs, await queue_facts(sqs, created["QueueUrl"], ""))


@pytest_asyncio.fixture(loop_scope="package")
async def queue(sqs: SQSClient) -> AsyncIterator[LaunchQueue]:
    yield await create(sqs)


@pytest_asyncio.fixture(loop_scope="package")
async def fifo(sqs: SQSClient) -> AsyncIterator[LaunchQueue]:
    yield await create(sqs, ".fifo")


async def one(queue: LaunchQueue, *, visibility: float = 30, wait: float = 2) -> SqsMessage:
    (message,) = await queue.receive(1, wait=wait, visibility=visibility)
    return message


async def bodies(queue: LaunchQueue, *, wait: float = 0) -> list[str]:
    return [message.body for message in await queue.receive(10, wait=wait, visibility=30)]


async def test_facts_are_read_from_the_queue(queue: LaunchQueue, fifo: LaunchQueue, sqs: SQSClient) -> None:
    assert (queue.facts.fifo, fifo.facts.fifo) == (False, True)
    assert queue.facts.arn.startswith("arn:aws:sqs:us-east-1:")
    assert queue.facts.dlq_url.startswith("http://127.0.0.1:")
    with pytest.raises(SettingsError, match="LAUNCH_QUEUE_URL"):
        await queue_facts(sqs, f"{queue.facts.url}-missing", "")


async def test_a_long_poll_brings_a_message_at_once(queue: LaunchQueue) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(one(queue, wait=10))
        await asyncio.sleep(0.5)
        sent = await queue.send("hällo", "a", group="team")
        at = time.monotonic()
    message = waiting.result()
    assert time.monotonic() - at < 3
    assert (message.message_id, message.body) == (sent, "hällo")
    assert (message.receive_count, message.group_id) == (1, "team")


async def test_hidden_then_back_then_deleted(queue: LaunchQueue) -> None:
    await queue.send("a", "a")
    first = await one(queue)
    assert await bodies(queue) == []
    await queue.hide(first, 0)
    second = await one(queue)
    assert second.receive_count == 2
    await queue.delete(second)
    await queue.hide(second, 0)  # too late, and no error
    assert await bodies(queue, wait=1) == []


async def test_leases_are_extended_together_and_a_lost_one_is_told(queue: LaunchQueue) -> None:
    for number in range(3):
        await queue.send(str(number), str(number))
    held = [await one(queue, visibility=2) for _ in range(3)]
    await queue.delete(held[0])
    lost = await queue.extend(held, 20)
    assert lost <= {held[0].receipt_handle}
    await asyncio.sleep(2.5)
    assert await bodies(queue, wait=1) == [], "the extended ones are still hidden"


async def test_a_lease_outlives_the_visibility_it_began_with(queue: LaunchQueue) -> None:
    await queue.send("a", "a")
    asked_at = time.monotonic()
    message = await one(queue, visibility=2)
    leases = Leases(queue, 2, Metrics())
    lease = leases.start(message, asked_at, pytest.fail)
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(leases.renew_forever())
        await asyncio.sleep(4)
        renewing.cancel()
    assert await bodies(queue) == []
    leases.end(lease)
    assert await bodies(queue, wait=4) == ["a"], "not renewed any more, it comes back"


async def test_refused_messages_are_copied_with_their_reason(queue: LaunchQueue, sqs: SQSClient) -> None:
    await queue.copy_to_dlq("body\x00", "id", {"reason": "no \x01 image", "stage": "build", "code": ""})
    answer = await sqs.receive_message(
        QueueUrl=queue.facts.dlq_url, MessageAttributeNames=["All"], WaitTimeSeconds=2
    )
    (copied,) = answer["Messages"]
    assert copied["Body"] == "body�"
    attributes = {name: value["StringValue"] for name, value in copied["MessageAttributes"].items()}
    assert attributes == {"reason": "no � image", "stage": "build"}


async def test_fifo_sends_once_and_takes_one_at_a_time(fifo: LaunchQueue) -> None:
    await fifo.send("a", "a")
    await fifo.send("a", "a")
    await fifo.send("b", "b")
    (first,) = await fifo.receive(10, wait=2, visibility=30)
    (second,) = await fifo.receive(10, wait=2, visibility=30)
    assert {first.body, second.body} == {"a", "b"}
    assert {first.group_id, second.group_id} == {"a", "b"}
    assert await bodies(fifo, wait=1) == []


async def test_the_receiver_settles_every_outcome(queue: LaunchQueue) -> None:
    outcomes = {
        "done": Outcome(Verdict.DONE),
        "never": Outcome(Verdict.NEVER),
        "again": Outcome(Verdict.AGAIN, delay=1),
        "busy": Outcome(Verdict.BUSY, delay=60),
    }
    seen: list[str] = []
    stop = asyncio.Event()

    async def handle(message: SqsMessage) -> Outcome:
        seen.append(message.body)
        if seen.count("again") == 2:
            stop.set()
        if message.receive_count == 2:
            return Outcome(Verdict.DONE)
        return outcomes[message.body]

    for name in outcomes:
        await queue.send(name, name)
    metrics = Metrics()
    receiver = Receiver(
        queue=queue,
        leases=Leases(queue, 10, metrics),
        handle=handle,
        slots=3,
        wait=1,
        grace=5,
        metrics=metrics,
    )
    async with asyncio.timeout(30):
        await receiver.run(stop)
    assert sorted(seen) == ["again", "again", "busy", "done", "never"]
    assert await bodies(queue, wait=1) == [], "busy is hidden, the others are deleted"


async def test_what_does_not_end_within_the_grace_comes_back(queue: LaunchQueue) -> None:
    await queue.send("slow", "slow")
    stop = asyncio.Event()

    async def handle(_: SqsMessage) -> Outcome:
        stop.set()
        await asyncio.sleep(60)
        return Outcome(Verdict.DONE)

    metrics = Metrics()
    receiver = Receiver(
        queue=queue,
        leases=Leases(queue, 30, metrics),
        handle=handle,
        slots=1,
        wait=1,
        grace=0.2,
        metrics=metrics,
    )
    async with asyncio.timeout(20):
        await receiver.run(stop)
    assert await bodies(queue, wait=2) == ["slow"]
