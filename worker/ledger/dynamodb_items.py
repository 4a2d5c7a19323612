"""What the ledger keeps in DynamoDB, and how it is cut to fit DynamoDB's limits. Pure.

Items (partition key `pk`):

* `launch#<id>`    `body` (the record as JSON), `owner`, `epoch`; `holder` while open; `expires` once it is not
* `worker#<id>`    `body` (the heartbeat as JSON), `holder` = `#workers`
* `lock#<name>`    `owner`
* `run#<path>`     `owner` (a launch id); `expires`
* `stop#<id>`      `body` (the request to stop as JSON), `holder` = `#stops`; `expires`

`holder` is the key of the sparse index `holder-index`: the owner of an open record, `-` for released ones. The index
names items, it does not hold them (`dynamodb_lists`).
`expires` is the table's TTL attribute, epoch seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from worker.launch.record import LaunchRecord, record_from_json, record_to_json
from worker.ledger.port import STOP_TTL, RecordTooBig, StopRequest, WorkerBeat

INDEX = "holder-index"
RELEASED = "-"
"""`holder` of open records that nobody owns: a key of an index cannot be empty."""
WORKERS = "#workers"
"""`holder` of all heartbeats."""

STOPS = "#stops"
"""`holder` of all requests to stop."""

MAX_ITEM_BYTES = 400 * 1024 - 1024
"""Attribute names and values of one item: DynamoDB's 400 KB (developer guide, 'Quotas'), less room for the name of a
later owner."""
MAX_TRANSACTION_ITEMS = 100
MAX_TRANSACTION_BYTES = 500_000
"""All items of one TransactWriteItems call. The quota is 4 MB; but a request body above 1 MiB holds up the event loop
while it is sent (aiohttp warns of it), and JSON in JSON is larger on the wire."""

_BEAT = TypeAdapter(WorkerBeat)
_STOP = TypeAdapter(StopRequest)

Item = Mapping[str, Any]
"""One item in DynamoDB's own notation, `{"name": {"S": "text"}}`."""


@dataclass(frozen=True, slots=True)
class Write:
    """One record on its way into the table."""

    launch_id: str
    epoch: int
    item: Item
    size: int
    """Bytes, as `item_bytes` counts them."""

    @classmethod
    def of(cls, record: LaunchRecord) -> Write:
        """The write of a record."""
        item = launch_item(record)
        return cls(record.launch_id, record.epoch, item, item_bytes(item))


def transactions(writes: Iterable[Write]) -> Iterator[list[Write]]:
    """Cut writes into batches that fit one TransactWriteItems call, by number and by size."""
    batch: list[Write] = []
    size = 0
    for write in writes:
        if len(batch) == MAX_TRANSACTION_ITEMS or size + write.size > MAX_TRANSACTION_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += write.size
    if batch:
        yield batch


def item_bytes(item: Item) -> int:
    """The size DynamoDB charges for an item of strings and numbers, or a little more."""
    return sum(
        len(name) + len(text.encode()) for name, attribute in item.items() for text in attribute.values()
    )


def check_size(write: Write, lost: Iterable[str] = ()) -> None:
    """Raise `RecordTooBig` for what DynamoDB would refuse; `lost` goes along."""
    if write.size > MAX_ITEM_BYTES:
        raise RecordTooBig(
            f"the ledger record of launch {write.launch_id} has {write.size} bytes, DynamoDB takes {MAX_ITEM_BYTES}; "
            "make the launch message smaller",
            frozenset(lost),
        )


def key(kind: Literal["launch", "worker", "lock", "run", "stop"], name: str) -> dict[str, Any]:
    """The primary key of an item."""
    return {"pk": {"S": f"{kind}#{name}"}}


def launch_item(record: LaunchRecord) -> Item:
    """The item of a launch; in the index while it is open, with a time to live once it is not."""
    item = key("launch", record.launch_id) | {
        "body": {"S": record_to_json(record)},
        "owner": {"S": record.owner},
        "epoch": {"N": str(record.epoch)},
    }
    if record.is_open:
        return item | {"holder": {"S": record.owner or RELEASED}}
    if record.expires_at > 0:
        return item | {"expires": {"N": str(math.ceil(record.expires_at))}}
    return item


def record_of(item: Item) -> LaunchRecord:
    """The record in an item made by `launch_item`, and perhaps claimed since."""
    # A claim changes the attributes only: they win over the body.
    record = record_from_json(item["body"]["S"])
    return replace(record, owner=item["owner"]["S"], epoch=int(item["epoch"]["N"]))


def beat_item(beat: WorkerBeat) -> Item:
    """The item of a worker's heartbeat."""
    body = _BEAT.dump_json(beat).decode()
    return key("worker", beat.worker) | {"body": {"S": body}, "holder": {"S": WORKERS}}


def beat_of(item: Item) -> WorkerBeat:
    """The heartbeat in an item made by `beat_item`."""
    return _BEAT.validate_json(item["body"]["S"])


def run_item(run: str, launch_id: str, expires_at: float) -> Item:
    """The item of a launch's claim of a run in W&B."""
    return key("run", run) | {"owner": {"S": launch_id}, "expires": {"N": str(math.ceil(expires_at))}}


def stop_item(request: StopRequest) -> Item:
    """The item of a request to stop."""
    return key("stop", request.launch_id) | {
        "body": {"S": _STOP.dump_json(request).decode()},
        "holder": {"S": STOPS},
        "expires": {"N": str(math.ceil(request.asked_at + STOP_TTL))},
    }


def stop_of(item: Item) -> StopRequest:
    """The request in an item made by `stop_item`."""
    return _STOP.validate_json(item["body"]["S"])
