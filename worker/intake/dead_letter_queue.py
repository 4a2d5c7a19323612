"""The dead-letter queue as people look at it: nothing is removed by looking. Facts: Amazon SQS API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.clients.aws import call

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

HOLD = 120.0
"""Seconds for which looked-at letters are hidden from others, unless they are released before."""
LONG_POLL = 1
"""Seconds; a long poll asks all of SQS's servers, so that an empty answer means something (ReceiveMessage)."""
_BATCH = 10
_MOST = 1000
"""Letters looked at in one go."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused message, secrets taken out. Without `code` SQS itself has moved it (`maxReceiveCount`)."""

    message_id: str
    receipt_handle: str
    body: str
    sent_at: float
    """Epoch seconds."""
    launch_id: str = ""
    stage: str = ""
    code: str = ""
    reason: str = ""
    is_cut: bool = False
    """The body was too long, and is not whole."""


@dataclass(frozen=True, slots=True)
class Letters:
    """What was found, oldest first."""

    letters: Sequence[DeadLetter]
    more: int
    """About so many may be there besides: hidden by somebody else, or too many for one go."""


class DeadLetterQueue:
    """Reads, releases and deletes dead letters."""

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self._url = url

    async def look(self) -> Letters:
        """All letters that can be had, hidden from others for `HOLD` seconds: `release` them, or `delete` them."""
        found: dict[str, DeadLetter] = {}
        while len(found) < _MOST:
            answer = await call(
                "ReceiveMessage (DLQ)",
                lambda: self._client.receive_message(
                    QueueUrl=self._url,
                    MaxNumberOfMessages=_BATCH,
                    WaitTimeSeconds=LONG_POLL,
                    VisibilityTimeout=int(HOLD),
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=["SentTimestamp"],
                ),
            )
            messages = answer.get("Messages", [])
            found.update((letter.message_id, letter) for letter in map(_letter, messages))
            if not messages:
                break
        more = await self._count() - len(found)
        return Letters(sorted(found.values(), key=lambda letter: letter.sent_at), max(0, more))

    async def release(self, letters: Sequence[DeadLetter]) -> None:
        """Show them again at once: whoever looks next sees the same."""
        for start in range(0, len(letters), _BATCH):
            entries: list[Any] = [
                {"Id": str(i), "ReceiptHandle": letter.receipt_handle, "VisibilityTimeout": 0}
                for i, letter in enumerate(letters[start : start + _BATCH])
            ]
            await self._change(entries)

    async def delete(self, letter: DeadLetter) -> None:
        """It has been dealt with."""
        await call(
            "DeleteMessage (DLQ)",
            lambda: self._client.delete_message(QueueUrl=self._url, ReceiptHandle=letter.receipt_handle),
        )

    async def _change(self, entries: list[Any]) -> None:
        await call(
            "ChangeMessageVisibilityBatch (DLQ)",
            lambda: self._client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries),
        )

    async def _count(self) -> int:
        names: list[Any] = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await call(
            "GetQueueAttributes (DLQ)",
            lambda: self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=names),
        )
        attributes: Mapping[str, str] = answer["Attributes"]  # type: ignore[assignment]
        return sum(int(attributes.get(name, 0)) for name in names)


def _letter(raw: Mapping[str, Any]) -> DeadLetter:
    given = {name: value.get("StringValue", "") for name, value in raw.get("MessageAttributes", {}).items()}
    return DeadLetter(
        message_id=raw["MessageId"],
        receipt_handle=raw["ReceiptHandle"],
        body=raw["Body"],
        sent_at=int(raw.get("Attributes", {}).get("SentTimestamp", 0)) / 1000,
        launch_id=given.get("launchId", ""),
        stage=given.get("stage", ""),
        code=given.get("code", ""),
        reason=given.get("reason", ""),
        is_cut=bool(given.get("truncated")),
    )
