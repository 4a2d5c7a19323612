"""The queue of launch messages and its dead-letter queue."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worker.clients.aws import AwsClients, AwsRefused, NotPermitted, call
from worker.doctor.check import Check, failed, ok
from worker.errors import WorkerError
from worker.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_sqs.literals import QueueAttributeNameType

SAFE_RECEIVES = 100
"""`maxReceiveCount` below which SQS may move a launch that only waits for a service to answer. Ours is 1000."""
SHORTEST_RETENTION = 24 * 3600
"""Seconds."""

_COUNTS: tuple[QueueAttributeNameType, ...] = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
)
_NAMES: tuple[QueueAttributeNameType, ...] = (
    "QueueArn",
    "RedrivePolicy",
    "VisibilityTimeout",
    "MessageRetentionPeriod",
    *_COUNTS,
)


def required_checks(settings: Settings) -> Sequence[Check]:
    """What can be told without AWS: no command of a worker starts without a queue."""
    if settings.queue_url:
        return []
    return [
        failed("queue", "LAUNCH_QUEUE_URL: not set", "give the URL of the SQS queue with launch messages")
    ]


async def queue_checks(aws: AwsClients, settings: Settings) -> Sequence[Check]:
    """Attributes, visibility, redrive policy, dead-letter queue. Nothing without a queue: `required_checks` tells."""
    if not settings.queue_url:
        return []
    try:
        found = await _attributes(aws, settings.queue_url)
    except AwsRefused as error:
        return [
            failed(
                "queue",
                f"{settings.queue_url}: {error.aws_message} (asked in {aws.region})",
                "correct LAUNCH_QUEUE_URL and AWS_REGION, or create the queue",
            )
        ]
    return [
        _queue(settings.queue_url, found),
        _visibility(found, settings),
        *await _dead_letters(aws, settings, found),
    ]


async def queue_arns(aws: AwsClients, settings: Settings) -> tuple[str, str]:
    """ARNs of the queue and of where refused messages go; empty for what cannot be found."""
    if not settings.queue_url:
        return "", ""
    try:
        found = await _attributes(aws, settings.queue_url)
        if settings.dlq_url:
            return found["QueueArn"], (await _attributes(aws, settings.dlq_url))["QueueArn"]
    except WorkerError:  # told by `queue_checks`
        return "", ""
    policy: Mapping[str, Any] = json.loads(found.get("RedrivePolicy") or "{}")
    return found["QueueArn"], str(policy.get("deadLetterTargetArn", ""))


def _queue(url: str, found: Mapping[str, str]) -> Check:
    retention = int(found["MessageRetentionPeriod"])
    if retention < SHORTEST_RETENTION:
        return failed(
            "queue",
            f"SQS forgets messages after {retention} s: a launch that waits longer is lost",
            "set MessageRetentionPeriod to 1209600 (14 days)",
        )
    kind = "FIFO" if url.endswith(".fifo") else "standard"
    waiting, in_work = (found.get(name, "?") for name in _COUNTS)
    return ok("queue", f"{found['QueueArn']} ({kind}), {waiting} messages waiting, {in_work} in work")


def _visibility(found: Mapping[str, str], settings: Settings) -> Check:
    """A busy launch's message is hidden for three heartbeats and more; a lease that ends sooner is renewed in vain."""
    if settings.lease < settings.heartbeat:
        return failed(
            "visibility",
            f"LAUNCH_LEASE ({settings.lease:g} s) is shorter than LAUNCH_HEARTBEAT ({settings.heartbeat:g} s)",
            "make the lease several heartbeats long: messages in work would come back while their worker lives",
        )
    own = int(found["VisibilityTimeout"])
    return ok(
        "visibility", f"a lease of {settings.lease:g} s is asked for with each receive (queue: {own} s)"
    )


async def _dead_letters(aws: AwsClients, settings: Settings, found: Mapping[str, str]) -> list[Check]:
    policy: Mapping[str, Any] = json.loads(found.get("RedrivePolicy") or "{}")
    target = str(policy.get("deadLetterTargetArn", ""))
    if not target and not settings.dlq_url:
        return [
            failed(
                "dead letters",
                "no redrive policy, and LAUNCH_DLQ_URL is not set: refused messages are copied nowhere",
                "give the queue a redrive policy with a dead-letter queue and maxReceiveCount 1000",
            )
        ]
    checks: list[Check] = []
    receives = int(policy.get("maxReceiveCount", 0))
    if target and receives < SAFE_RECEIVES:
        checks.append(
            failed(
                "redrive",
                f"maxReceiveCount is {receives}: SQS moves launches away while they wait for their next try",
                "set it to 1000; the worker itself copies what it refuses to the dead-letter queue",
            )
        )
    elif target:
        checks.append(ok("redrive", f"maxReceiveCount {receives}"))
    return [*checks, await _dead_letter_queue(aws, settings, target)]


async def _dead_letter_queue(aws: AwsClients, settings: Settings, target: str) -> Check:
    name, url = target.rpartition(":")[2], settings.dlq_url
    remedy = "create it, or correct the redrive policy or LAUNCH_DLQ_URL"
    letters: Mapping[str, str] = {}
    try:
        if not url:
            answer = await call("GetQueueUrl", lambda: aws.sqs.get_queue_url(QueueName=name))
            url = answer["QueueUrl"]
        with contextlib.suppress(NotPermitted):  # a worker only sends there; its policy has no more
            letters = await _attributes(aws, url)
    except AwsRefused as error:
        return failed("dead letters", f"{url or name}: {error.aws_message}", remedy)
    if target and target.endswith(".fifo") != settings.queue_url.endswith(".fifo"):
        return failed(
            "dead letters",
            f"{name} is not of the queue's type",
            "a FIFO queue needs a FIFO dead-letter queue, a standard queue a standard one",
        )
    if url == settings.queue_url:
        return failed(
            "dead letters", "LAUNCH_DLQ_URL is the queue itself", "name another queue for refused launches"
        )
    count = letters.get(_COUNTS[0], "?")
    where = letters.get("QueueArn") or target or url
    return ok("dead letters", f"{where}, {count} refused launches (`launch-worker dlq list`)")


async def _attributes(aws: AwsClients, url: str) -> Mapping[str, str]:
    answer = await call(
        "GetQueueAttributes",
        lambda: aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=_NAMES),
    )
    attributes: Mapping[str, str] = answer["Attributes"]  # type: ignore[assignment]
    return attributes
