"""Lists of the DynamoDB ledger: its sparse index names the items, the table has them.

The index holds keys alone (`create_table_request`), so that to write a record costs it nothing while the holder stays
the same: all launches of a worker lie under one key, and behind one key DynamoDB takes 1,000 write units a second
before it throttles the table's own writes (developer guide, 'GSI write throttling and back pressure').
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worker.aio import backoff
from worker.errors import Throttled
from worker.ledger.dynamodb_errors import MAX_TRIES, translated
from worker.ledger.dynamodb_items import INDEX, Item, key

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

MAX_KEYS = 100
"""Keys of one BatchGetItem call (API reference)."""

_LAUNCHES: Mapping[str, Any] = {
    "FilterExpression": "begins_with(pk, :launch)",
    "ExpressionAttributeValues": {":launch": key("launch", "")["pk"]},
}


async def held_by(client: DynamoDBClient, table: str, holder: str) -> list[Item]:
    """The items that the index has under a holder and that still have it: the index lags, the table does not."""
    named = await _pages(
        "Query",
        client.query,
        {
            "TableName": table,
            "IndexName": INDEX,
            "KeyConditionExpression": "#holder = :holder",
            "ExpressionAttributeNames": {"#holder": "holder"},
            "ExpressionAttributeValues": {":holder": {"S": holder}},
            "ProjectionExpression": "pk",
        },
    )
    return [item for item in await _read(client, table, named) if item.get("holder") == {"S": holder}]


async def open_launches(client: DynamoDBClient, table: str) -> list[Item]:
    """The launches that the index has and that are still open: a Scan of the index, which has no others."""
    request = {"TableName": table, "IndexName": INDEX, "ProjectionExpression": "pk", **_LAUNCHES}
    named = await _pages("Scan", client.scan, request)
    return [item for item in await _read(client, table, named) if "holder" in item]


async def all_launches(client: DynamoDBClient, table: str) -> list[Item]:
    """Every launch in the table: a Scan of all of it."""
    return await _pages("Scan", client.scan, {"TableName": table, **_LAUNCHES})


async def _pages(
    operation: str, send: Callable[..., Awaitable[Any]], request: Mapping[str, Any]
) -> list[Item]:
    """The items of all answers."""
    items: list[Item] = []
    page: Mapping[str, Any] = {}
    while True:
        with translated(operation, request["TableName"]):
            answer = await send(**request, **page)
        items += answer["Items"]
        if "LastEvaluatedKey" not in answer:
            return items
        page = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


async def _read(client: DynamoDBClient, table: str, named: Sequence[Item]) -> list[Item]:
    """The items of some keys as they are now (strongly consistent); those that are gone are left out."""
    # An item that changes its holder during a Scan may be met under both, and no key may be asked for twice.
    names = list(dict.fromkeys(item["pk"]["S"] for item in named))
    items: list[Item] = []
    for start in range(0, len(names), MAX_KEYS):
        items += await _read_batch(client, table, names[start : start + MAX_KEYS])
    return items


async def _read_batch(client: DynamoDBClient, table: str, names: Sequence[str]) -> list[Item]:
    """One BatchGetItem, and more of them for keys that an answer leaves out: it holds 16 MB, and 1 MB a partition.

    Raises `Throttled` when several in a row get no further."""
    items: list[Item] = []
    keys: list[Item] = [{"pk": {"S": name}} for name in names]
    tries = 0
    while True:
        with translated("BatchGetItem", table):
            answer = await client.batch_get_item(RequestItems={table: {"Keys": keys, "ConsistentRead": True}})
        for found in answer["Responses"].values():
            items += found
        left: list[Item] = [
            each for rest in answer.get("UnprocessedKeys", {}).values() for each in rest["Keys"]
        ]
        if not left:
            return items
        tries = 0 if len(left) < len(keys) else tries + 1
        if tries == MAX_TRIES:
            raise Throttled(f"DynamoDB table {table}: {len(left)} items not read, {MAX_TRIES} times in a row")
        await asyncio.sleep(backoff(tries, base=0.05, cap=1.0))
        keys = left
