"""The SQS queue with launch messages: standard or FIFO. Facts: Amazon SQS API and developer guide."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from worker.aio import effect
from worker.clients.aws import AwsRefused, call
from worker.errors import SettingsError

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

MAX_VISIBILITY = 43_200.0
"""Seconds a message may stay hidden, counted from its receive: 12 h. Asking for more is an error, not a clamp."""
_MAX_BATCH = 10
_MAX_DLQ_BODY = 200_000
"""Bytes of a refused body that are copied; a queue's maximum may be as low as 256 KiB, attributes included."""
MAX_MESSAGE_BYTES = 1 << 20
"""SQS's own maximum (SetQueueAttributes, MaximumMessageSize); a queue's may be lower."""
_NOT_IN_GROUP = re.compile(r"[^A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")
"""What a MessageGroupId may not hold (SendMessage)."""
_LOST_CODES = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"})


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What the worker needs to know of its queue; read once at start."""

    url: str
    arn: str
    fifo: bool
    dlq_url: str
    """Empty: refused messages are copied nowhere."""
    max_bytes: int = MAX_MESSAGE_BYTES
    """Largest message that it takes."""


@dataclass(frozen=True, slots=True)
class SqsMessage:
    """One received message."""

    message_id: str
    receipt_handle: str
    body: str
    receive_count: int
    group_id: str


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Messages of the queue, approximately."""

    waiting: int
    in_work: int
    """Received by some worker, under a lease or waiting for their next try."""
    delayed: int


class LaunchQueue:
    """Receives, hides, deletes and dead-letters launch messages."""

    def __init__(self, client: SQSClient, facts: QueueFacts) -> None:
        self._client = client
        self.facts = facts

    async def receive(self, limit: int, *, wait: float, visibility: float) -> list[SqsMessage]:
        """Long-poll for at most `limit` messages. FIFO: one, since the rest of a group would wait behind it with
        its clock running."""
        answer = await call(
            "ReceiveMessage",
            lambda: self._client.receive_message(
                QueueUrl=self.facts.url,
                MaxNumberOfMessages=1 if self.facts.fifo else min(limit, _MAX_BATCH),
                WaitTimeSeconds=int(wait),
                VisibilityTimeout=int(visibility),
                MessageSystemAttributeNames=["ApproximateReceiveCount", "MessageGroupId"],
            ),
        )
        return [_message(raw) for raw in answer.get("Messages", [])]

    async def hide(self, message: SqsMessage, seconds: float) -> None:
        """Let the message become visible again after `seconds`; a handle that expired already is no error."""
        try:
            with effect("release_message"):
                await call(
                    "ChangeMessageVisibility",
                    lambda: self._client.change_message_visibility(
                        QueueUrl=self.facts.url,
                        ReceiptHandle=message.receipt_handle,
                        VisibilityTimeout=int(min(seconds, MAX_VISIBILITY - 60)),
                    ),
                )
        except AwsRefused as error:
            if error.aws_code.rpartition(".")[2] not in _LOST_CODES:
                raise

    async def extend(self, messages: Sequence[SqsMessage], seconds: float) -> frozenset[str]:
        """Renew the leases of up to ten messages in one call; returns the receipt handles that are lost."""
        assert len(messages) <= _MAX_BATCH
        answer = await call(
            "ChangeMessageVisibilityBatch",
            lambda: self._client.change_message_visibility_batch(
                QueueUrl=self.facts.url,
                Entries=[
                    {"Id": str(i), "ReceiptHandle": m.receipt_handle, "VisibilityTimeout": int(seconds)}
                    for i, m in enumerate(messages)
                ],
            ),
        )
        # Entries can fail one by one inside an HTTP 200; SenderFault is not reliable, the code is.
        return frozenset(
            messages[int(entry["Id"])].receipt_handle
            for entry in answer.get("Failed", [])
            if entry["Code"].rpartition(".")[2] in _LOST_CODES
        )

    async def counts(self) -> QueueDepth:
        """How many messages there are, as SQS knows it (eventually consistent)."""
        answer = await call(
            "GetQueueAttributes",
            lambda: self._client.get_queue_attributes(
                QueueUrl=self.facts.url,
                AttributeNames=[
                    "ApproximateNumberOfMessages",
                    "ApproximateNumberOfMessagesNotVisible",
                    "ApproximateNumberOfMessagesDelayed",
                ],
            ),
        )
        counts = {str(name): int(value) for name, value in answer["Attributes"].items()}
        prefix = "ApproximateNumberOfMessages"
        return QueueDepth(
            counts.get(prefix, 0), counts.get(f"{prefix}NotVisible", 0), counts.get(f"{prefix}Delayed", 0)
        )

    async def delete(self, message: SqsMessage) -> None:
        """The message has been dealt with."""
        with effect("delete_message"):
            await call(
                "DeleteMessage",
                lambda: self._client.delete_message(
                    QueueUrl=self.facts.url, ReceiptHandle=message.receipt_handle
                ),
            )

    async def send(
        self, body: str, launch_id: str, *, group: str = "", again: str = "", delay: int = 0
    ) -> str:
        """Send a launch message; returns its message id. FIFO: group and deduplication id are the launch id;
        standard: the group, a W&B queue, gives SQS fair queues. `again` tells a further sending of the same launch
        from the one before, which SQS would silently drop within five minutes. Nobody receives it for `delay` seconds
        (which SQS knows for a FIFO queue as a whole only)."""
        extra = self._ordering(launch_id, group, again)
        if delay and not self.facts.fifo:
            extra = {**extra, "DelaySeconds": delay}
        answer = await call(
            "SendMessage",
            lambda: self._client.send_message(QueueUrl=self.facts.url, MessageBody=body, **extra),
        )
        return answer["MessageId"]

    async def depth(self) -> int:
        """Messages that are not deleted yet: visible, in work or hidden, delayed. Approximate, as SQS's numbers are."""
        counts = await self.counts()
        return counts.waiting + counts.in_work + counts.delayed

    async def copy_to_dlq(self, body: str, launch_id: str, attributes: Mapping[str, str]) -> None:
        """Copy a refused message, secrets already taken out, with the reason in its attributes."""
        if not self.facts.dlq_url:
            return
        given = dict(attributes)
        raw = body.encode("utf-8", "replace")
        if len(raw) > _MAX_DLQ_BODY:
            given["truncated"] = str(len(raw))
            body = raw[:_MAX_DLQ_BODY].decode("utf-8", "ignore")
        again = given.get("attempt", "")  # refused once more within five minutes, it is another letter
        extra = self._ordering(launch_id, "", again) if self.facts.dlq_url.endswith(".fifo") else {}
        with effect("copy_to_dlq"):
            await call(
                "SendMessage (DLQ)",
                lambda: self._client.send_message(
                    QueueUrl=self.facts.dlq_url,
                    MessageBody=_sendable(body) or "(empty)",
                    MessageAttributes={
                        name: {"DataType": "String", "StringValue": _sendable(value)[:2000]}
                        for name, value in given.items()
                        if value
                    },
                    **extra,
                ),
            )

    def _ordering(self, launch_id: str, group: str, again: str = "") -> Mapping[str, Any]:
        if self.facts.fifo:
            distinct = f"{launch_id}-{again}" if again else launch_id
            return {"MessageGroupId": launch_id, "MessageDeduplicationId": distinct}
        return {"MessageGroupId": _NOT_IN_GROUP.sub("-", group)[:128]} if group else {}


async def queue_facts(client: SQSClient, url: str, dlq_url: str) -> QueueFacts:
    """Ask SQS about the queue. FIFO queues are told by their name, which ends in `.fifo` (CreateQueue); a standard
    queue answers a question for `FifoQueue` with an error. Raises `SettingsError` if there is no such queue."""
    try:
        answer = await call(
            "GetQueueAttributes",
            lambda: client.get_queue_attributes(
                QueueUrl=url, AttributeNames=["QueueArn", "RedrivePolicy", "MaximumMessageSize"]
            ),
        )
    except AwsRefused as error:
        elsewhere = in_other_region(url, client.meta.region_name)
        told = f"{elsewhere}; {error.aws_message}" if elsewhere else error.aws_message
        raise SettingsError(f"LAUNCH_QUEUE_URL: {url}: {told}") from error
    attributes: Mapping[str, str] = answer["Attributes"]  # type: ignore[assignment]
    if not dlq_url and (policy := attributes.get("RedrivePolicy")):
        dlq_name = json.loads(policy)["deadLetterTargetArn"].rpartition(":")[2]
        dlq_url = (await call("GetQueueUrl", lambda: client.get_queue_url(QueueName=dlq_name)))["QueueUrl"]
    largest = int(attributes.get("MaximumMessageSize", MAX_MESSAGE_BYTES))
    return QueueFacts(url, attributes["QueueArn"], url.endswith(".fifo"), dlq_url, largest)


def _region_of_queue(url: str) -> str:
    """Of `https://sqs.REGION.amazonaws.com/…`; empty for any other endpoint."""
    labels = (urlsplit(url).hostname or "").split(".")
    return labels[1] if len(labels) > 3 and labels[0] == "sqs" and "amazonaws" in labels else ""


def in_other_region(url: str, region: str) -> str:
    """That the queue is elsewhere, and what to do: SQS itself says only that there is no such queue. Else empty."""
    there = _region_of_queue(url)
    if not there or there == region:
        return ""
    return f"the queue is in {there}, the worker in {region}: set AWS_REGION={there}, or name a queue in {region}"


def _message(raw: Mapping[str, Any]) -> SqsMessage:
    attributes = raw.get("Attributes", {})
    return SqsMessage(
        message_id=raw["MessageId"],
        receipt_handle=raw["ReceiptHandle"],
        body=raw["Body"],
        receive_count=int(attributes.get("ApproximateReceiveCount", 1)),
        group_id=attributes.get("MessageGroupId", ""),
    )


def _sendable(text: str) -> str:
    """SQS takes only the characters of XML 1.0 (SendMessage, 'MessageBody')."""
    return "".join(
        ch
        if ch in "\t\n\r" or " " <= ch <= "\ud7ff" or "\ue000" <= ch <= "\ufffd" or ch >= "\U00010000"
        else "�"
        for ch in text
    )
