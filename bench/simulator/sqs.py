"""One standard SQS queue: receive with long polling, visibility, delete. Source: botocore's service model."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from bench.simulator.errors import AwsError
from bench.simulator.jobs import ACCOUNT, REGION

Json = dict[str, Any]
QUEUE = "bench"


@dataclass(slots=True, eq=False)
class _Message:
    identity: str
    body: str
    group: str
    receives: int = 0
    handle: str = ""
    visible_at: float = 0.0
    deleted: bool = False


class SqsOperations:
    """One method an operation. Every queue name means the same queue, but for names that end in `-dlq`."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._visible: deque[_Message] = deque()
        self._hidden: list[tuple[float, int, _Message]] = []
        self._by_handle: dict[str, _Message] = {}
        self._arrived = asyncio.Event()
        self.dead: list[str] = []
        self.deleted = 0

    def send(self, body: str, group: str = "") -> str:
        """Put a message on the queue; returns its id."""
        message = _Message(f"{next(self._numbers):08x}", body, group)
        self._visible.append(message)
        self._arrived.set()
        return message.identity

    def clear(self) -> None:
        """No messages."""
        self._visible.clear()
        self._hidden.clear()
        self._by_handle.clear()
        self.dead.clear()

    def depth(self) -> tuple[int, int]:
        """Messages (visible, in flight)."""
        self._show()
        return len(self._visible), len(self._by_handle)

    def op_GetQueueUrl(self, ask: Json) -> Json:
        """The queue's address."""
        return {"QueueUrl": f"http://127.0.0.1/{ACCOUNT}/{ask['QueueName']}"}

    def op_GetQueueAttributes(self, ask: Json) -> Json:
        """What a worker asks for at its start, and the counts: only what is asked for, as SQS does."""
        name = str(ask["QueueUrl"]).rpartition("/")[2]
        visible, hidden = self.depth()
        known = {
            "QueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}",
            "VisibilityTimeout": "30",
            "ApproximateNumberOfMessages": str(visible),
            "ApproximateNumberOfMessagesNotVisible": str(hidden),
            "ApproximateNumberOfMessagesDelayed": "0",
        }
        asked = ask.get("AttributeNames") or ()
        return {"Attributes": {key: value for key, value in known.items() if key in asked or "All" in asked}}

    async def op_ReceiveMessage(self, ask: Json) -> Json:
        """Up to ten messages; waits for the first one as long as asked."""
        deadline = time.monotonic() + float(ask.get("WaitTimeSeconds", 0))
        self._show()
        while not self._visible and (left := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                # Not longer than a quarter of a second: a hidden message may become visible meanwhile.
                async with asyncio.timeout(min(0.25, left)):
                    await self._arrived.wait()
            except TimeoutError:
                pass
            self._show()
        count = min(len(self._visible), int(ask.get("MaxNumberOfMessages", 1)))
        hidden_for = float(ask.get("VisibilityTimeout", 30))
        if not count:
            return {}  # as AWS leaves the key out
        return {"Messages": [self._hand_out(hidden_for) for _ in range(count)]}

    def op_DeleteMessage(self, ask: Json) -> Json:
        """The message is done with."""
        message = self._by_handle.pop(ask["ReceiptHandle"], None)
        if message is not None:
            message.deleted = True
            self.deleted += 1
        return {}

    def op_DeleteMessageBatch(self, ask: Json) -> Json:
        """Several at once."""
        for entry in ask["Entries"]:
            self.op_DeleteMessage(entry)
        return {"Successful": [{"Id": entry["Id"]} for entry in ask["Entries"]], "Failed": []}

    def op_ChangeMessageVisibility(self, ask: Json) -> Json:
        """Hide a message anew, or show it (0)."""
        message = self._by_handle.get(ask["ReceiptHandle"])
        if message is None:
            raise AwsError("ReceiptHandleIsInvalid", "The receipt handle has expired.")
        self._hide(message, float(ask["VisibilityTimeout"]))
        return {}

    def op_ChangeMessageVisibilityBatch(self, ask: Json) -> Json:
        """Several at once; each may fail by itself."""
        done: list[Json] = []
        failed: list[Json] = []
        for entry in ask["Entries"]:
            message = self._by_handle.get(entry["ReceiptHandle"])
            if message is None:
                failed.append({"Id": entry["Id"], "Code": "ReceiptHandleIsInvalid", "SenderFault": True})
            else:
                self._hide(message, float(entry["VisibilityTimeout"]))
                done.append({"Id": entry["Id"]})
        return {"Successful": done, "Failed": failed}

    def op_SendMessage(self, ask: Json) -> Json:
        """To the queue, or to its DLQ."""
        body = ask["MessageBody"]
        digest = hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()
        if str(ask["QueueUrl"]).endswith("-dlq"):
            self.dead.append(body)
            return {"MessageId": f"dead-{len(self.dead)}", "MD5OfMessageBody": digest}
        return {"MessageId": self.send(body, ask.get("MessageGroupId", "")), "MD5OfMessageBody": digest}

    def _hand_out(self, hidden_for: float) -> Json:
        message = self._visible.popleft()
        message.receives += 1
        message.handle = f"{message.identity}-{message.receives}"
        self._by_handle[message.handle] = message
        self._hide(message, hidden_for)
        attributes = {"ApproximateReceiveCount": str(message.receives)}
        if message.group:
            attributes["MessageGroupId"] = message.group
        return {
            "MessageId": message.identity,
            "ReceiptHandle": message.handle,
            "MD5OfBody": hashlib.md5(message.body.encode(), usedforsecurity=False).hexdigest(),
            "Body": message.body,
            "Attributes": attributes,
        }

    def _hide(self, message: _Message, seconds: float) -> None:
        message.visible_at = time.monotonic() + seconds
        heapq.heappush(self._hidden, (message.visible_at, next(self._numbers), message))

    def _show(self) -> None:
        """Put back what is visible again."""
        now = time.monotonic()
        while self._hidden and self._hidden[0][0] <= now:
            at, _, message = heapq.heappop(self._hidden)
            if not message.deleted and at == message.visible_at:  # else it was hidden anew meanwhile
                self._by_handle.pop(message.handle, None)
                self._visible.append(message)
