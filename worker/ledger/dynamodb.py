"""The ledger in one DynamoDB table, for many hosts; `dynamodb_items` says what is in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from worker.aio import backoff
from worker.errors import Throttled
from worker.launch.record import LaunchRecord
from worker.ledger.dynamodb_errors import (
    CONFLICT,
    LOST,
    MAX_TRIES,
    PASSING,
    WRITTEN,
    Cancelled,
    ConditionFailed,
    translated,
)
from worker.ledger.dynamodb_items import (
    INDEX,
    MAX_ITEM_BYTES,
    RELEASED,
    STOPS,
    WORKERS,
    Item,
    Write,
    beat_item,
    beat_of,
    check_size,
    key,
    record_of,
    run_item,
    stop_item,
    stop_of,
    transactions,
)
from worker.ledger.dynamodb_lists import all_launches, held_by, open_launches
from worker.ledger.port import StopRequest, WorkerBeat

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.type_defs import CreateTableInputTypeDef

_IS_OURS = "#owner = :owner AND #epoch = :epoch"
_IS_OURS_NAMES = {"#owner": "owner", "#epoch": "epoch"}


def create_table_request(table: str) -> CreateTableInputTypeDef:
    """The CreateTable parameters of the ledger's table, paid per request. `ensure_ttl` adds the rest."""
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "holder", "AttributeType": "S"},
        ],
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": INDEX,
                "KeySchema": [{"AttributeName": "holder", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    }


async def ensure_ttl(client: DynamoDBClient, table: str) -> None:
    """Let DynamoDB remove items whose `expires` has passed; nothing happens if it already does."""
    with translated("DescribeTimeToLive", table):
        answer = await client.describe_time_to_live(TableName=table)
    if answer["TimeToLiveDescription"].get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
        return
    with translated("UpdateTimeToLive", table):
        await client.update_time_to_live(
            TableName=table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"}
        )


class DynamoDbLedger:
    """The ledger's port on an open client, whose own retries are off.

    Beyond the port, any call raises `SettingsError` when the table or its index is missing, and a write raises
    `Never` (`LW-LEDGER-ITEM-SIZE`) for a record above DynamoDB's 400 KB."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    async def read(self, launch_id: str) -> LaunchRecord | None:
        with translated("GetItem", self._table):
            answer = await self._client.get_item(
                TableName=self._table, Key=key("launch", launch_id), ConsistentRead=True
            )
        return record_of(answer["Item"]) if "Item" in answer else None

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        write = Write.of(record)
        check_size(write)
        try:
            with translated("PutItem", self._table):
                await self._client.put_item(
                    TableName=self._table,
                    Item=write.item,
                    ConditionExpression="attribute_not_exists(pk)",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except ConditionFailed as refused:
            return record_of(refused.item)
        return None

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        # `holder` may be set on open records only, so the claim also depends on the record still being open.
        is_open = seen.is_open
        names = _IS_OURS_NAMES | {"#holder": "holder"}
        values = {
            ":owner": {"S": seen.owner},
            ":epoch": {"N": str(seen.epoch)},
            ":worker": {"S": worker},
            ":next": {"N": str(seen.epoch + 1)},
        }
        unchanged = "attribute_exists(#holder)" if is_open else "attribute_not_exists(#holder)"
        try:
            with translated("UpdateItem", self._table):
                answer = await self._client.update_item(
                    TableName=self._table,
                    Key=key("launch", seen.launch_id),
                    UpdateExpression="SET #owner = :worker, #epoch = :next"
                    + (", #holder = :worker" if is_open else ""),
                    ConditionExpression=f"{_IS_OURS} AND {unchanged}",
                    ExpressionAttributeNames=names,
                    ExpressionAttributeValues=values,
                    ReturnValues="ALL_NEW",
                )
        except ConditionFailed:
            return None
        return record_of(answer["Attributes"])

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        """As the port says."""
        writes = {record.launch_id: Write.of(record) for record in records}
        fitting = [write for write in writes.values() if write.size <= MAX_ITEM_BYTES]
        lost: set[str] = set()
        for batch in transactions(fitting):
            lost |= await self._save_batch(batch, owner)
        for write in writes.values():
            check_size(write, lost)
        return frozenset(lost)

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        return [record_of(item) for item in await self._held_by(owner or RELEASED)]

    async def beat(self, beat: WorkerBeat) -> None:
        with translated("PutItem", self._table):
            await self._client.put_item(TableName=self._table, Item=beat_item(beat))

    async def beats(self) -> list[WorkerBeat]:
        return [beat_of(item) for item in await self._held_by(WORKERS)]

    async def forget_worker(self, worker: str) -> None:
        with translated("DeleteItem", self._table):
            await self._client.delete_item(TableName=self._table, Key=key("worker", worker))

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        return await self._take(key("lock", name) | {"owner": {"S": worker}}, worker, held_by)

    async def unlock(self, name: str, worker: str) -> None:
        with contextlib.suppress(ConditionFailed), translated("DeleteItem", self._table):
            await self._client.delete_item(
                TableName=self._table,
                Key=key("lock", name),
                ConditionExpression="#owner = :worker",
                ExpressionAttributeNames={"#owner": "owner"},
                ExpressionAttributeValues={":worker": {"S": worker}},
            )

    async def claim_run(self, run: str, launch_id: str, *, expires_at: float, former: str = "") -> str:
        return await self._take(run_item(run, launch_id, expires_at), launch_id, former)

    async def records(self, *, over: bool) -> list[LaunchRecord]:
        """As the port says: a Scan of the sparse index, which has the open records only, or of the whole table."""
        read = all_launches if over else open_launches
        return [record_of(item) for item in await read(self._client, self._table)]

    async def ask_stop(self, request: StopRequest) -> None:
        with translated("PutItem", self._table):
            await self._client.put_item(TableName=self._table, Item=stop_item(request))

    async def stop_requests(self) -> list[StopRequest]:
        return [stop_of(item) for item in await self._held_by(STOPS)]

    async def forget_stop(self, launch_id: str) -> None:
        with translated("DeleteItem", self._table):
            await self._client.delete_item(TableName=self._table, Key=key("stop", launch_id))

    async def _take(self, item: Item, taker: str, former: str) -> str:
        """Write an item that has one owner at a time; returns its owner."""
        try:
            with translated("PutItem", self._table):
                await self._client.put_item(
                    TableName=self._table,
                    Item=item,
                    ConditionExpression="attribute_not_exists(pk) OR #owner IN (:taker, :former)",
                    ExpressionAttributeNames={"#owner": "owner"},
                    ExpressionAttributeValues={":taker": {"S": taker}, ":former": {"S": former or taker}},
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except ConditionFailed as refused:
            return str(refused.item["owner"]["S"])
        return taker

    async def _save_batch(self, batch: Sequence[Write], owner: str) -> set[str]:
        """Write a batch; a lost record leaves it and the rest is tried again. Returns the lost launch ids."""
        lost: set[str] = set()
        pending = list(batch)
        for tries in range(MAX_TRIES):
            reasons = await self._try_batch(pending, owner)
            if not reasons:
                return lost
            lost |= {launch_id for launch_id, reason in reasons.items() if reason == LOST}
            pending = [write for write in pending if write.launch_id not in lost]
            if not pending:
                return lost
            if not PASSING.isdisjoint(reasons.values()):
                await asyncio.sleep(backoff(tries, base=0.05, cap=1.0))
        raise Throttled(f"DynamoDB table {self._table}: conflicts or throttling, {MAX_TRIES} times in a row")

    async def _try_batch(self, batch: Sequence[Write], owner: str) -> dict[str, str]:
        """Write all or nothing. Returns why not, by launch id (only those that stood in the way); empty: written."""
        puts = [self._put_if_ours(write, owner) for write in batch]
        try:
            if len(puts) == 1:  # half the price of a transaction
                with translated("PutItem", self._table):
                    await self._client.put_item(**puts[0])
            else:
                with translated("TransactWriteItems", self._table):
                    await self._client.transact_write_items(TransactItems=[{"Put": put} for put in puts])
        except ConditionFailed:
            return {batch[0].launch_id: LOST}
        except Throttled:
            return {write.launch_id: CONFLICT for write in batch}
        except Cancelled as cancelled:
            return {
                write.launch_id: reason
                for write, reason in zip(batch, cancelled.reasons, strict=True)
                if reason != WRITTEN
            }
        return {}

    def _put_if_ours(self, write: Write, owner: str) -> Any:
        return {
            "TableName": self._table,
            "Item": write.item,
            "ConditionExpression": _IS_OURS,
            "ExpressionAttributeNames": _IS_OURS_NAMES,
            "ExpressionAttributeValues": {":owner": {"S": owner}, ":epoch": {"N": str(write.epoch)}},
        }

    async def _held_by(self, holder: str) -> list[Item]:
        return await held_by(self._client, self._table, holder)
