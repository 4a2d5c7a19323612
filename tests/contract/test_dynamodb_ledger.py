"""What the DynamoDB ledger promises beyond the port: its table, its limits, its errors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.dynamodb import DynamoDbDouble, dynamodb_client, serve_dynamodb
from worker.clients.aws import AwsDenied, AwsRefused
from worker.errors import Never, SettingsError, Throttled, Unreachable
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.ledger.dynamodb import DynamoDbLedger, create_table_request, ensure_ttl
from worker.ledger.dynamodb_errors import MAX_TRIES
from worker.ledger.dynamodb_items import (
    INDEX,
    MAX_ITEM_BYTES,
    MAX_TRANSACTION_BYTES,
    MAX_TRANSACTION_ITEMS,
    Write,
    item_bytes,
    key,
    launch_item,
    transactions,
)
from worker.ledger.dynamodb_lists import MAX_KEYS
from worker.ledger.port import RecordTooBig, WorkerBeat


def a_record(launch_id: str = "aaaa", *, owner: str = "w1", message: str = "") -> LaunchRecord:
    return LaunchRecord(
        launch_id=launch_id,
        state=LaunchState.INTENT,
        run=RunRef("team", "proj", "run1"),
        owner=owner,
        message=message,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDbDouble]:
    with serve_dynamodb() as double:
        yield double


@pytest.fixture
def double(server: DynamoDbDouble) -> Iterator[DynamoDbDouble]:
    server.operations.clear()
    server.requests.clear()
    yield server
    assert server.pending_failures() == 0, "a failure that the test prepared was never met"


@pytest.fixture
async def ledger(double: DynamoDbDouble) -> AsyncIterator[DynamoDbLedger]:
    table = f"launch-ledger-{secrets.token_hex(4)}"
    async with dynamodb_client(double.url) as client:
        await client.create_table(**create_table_request(table))
        yield DynamoDbLedger(client, table)


class TestTable:
    async def test_time_to_live_is_switched_on_once(self, double: DynamoDbDouble) -> None:
        async with dynamodb_client(double.url) as client:
            await client.create_table(**create_table_request("with-ttl"))
            await ensure_ttl(client, "with-ttl")
            await ensure_ttl(client, "with-ttl")
            answer = await client.describe_time_to_live(TableName="with-ttl")
        assert answer["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}
        assert double.operations.count("UpdateTimeToLive") == 1

    async def test_only_open_records_are_in_the_index_and_only_closed_ones_expire(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        records = [
            replace(a_record("open"), expires_at=5.0),
            replace(a_record("released"), owner=""),
            replace(a_record("closed"), state=LaunchState.FINISHED, expires_at=1000.25),
        ]
        for record in records:
            await ledger.create(record)
        await ledger.claim_run("acme/vision/r1", "closed", expires_at=2000.25)
        async with dynamodb_client(double.url) as client:
            answer = await client.scan(TableName=ledger._table)
        items = {item["pk"]["S"]: item for item in answer["Items"]}
        assert {pk: sorted(item.keys() - {"pk", "body", "owner", "epoch"}) for pk, item in items.items()} == {
            "launch#open": ["holder"],
            "launch#released": ["holder"],
            "launch#closed": ["expires"],
            "run#acme/vision/r1": ["expires"],
        }
        assert items["launch#released"]["holder"] == {"S": "-"}
        assert items["launch#closed"]["expires"] == {"N": "1001"}
        assert items["run#acme/vision/r1"]["expires"] == {"N": "2001"}

    async def test_a_record_is_read_consistently(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.read("aaaa")
        assert double.operations[-1] == "GetItem"
        assert double.requests[-1]["ConsistentRead"] is True

    async def test_a_long_answer_is_read_to_its_end(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        """DynamoDB ends a page at 1 MB."""
        records = [a_record(f"launch-{n}", message="x" * 300_000) for n in range(5)]
        for record in records:
            await ledger.create(record)
        assert ids(await ledger.records(over=True)) == ids(records)
        assert double.operations.count("Scan") > 1


class TestIndex:
    """It has the keys alone, and lags."""

    async def test_a_write_that_leaves_the_holder_changes_nothing_in_it(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.create(a_record())
        before = await index_of(ledger)
        await ledger.save([replace(a_record(), tries=1)], owner="w1")
        assert await index_of(ledger) == before == [{"pk": {"S": "launch#aaaa"}, "holder": {"S": "w1"}}]

    async def test_what_it_names_is_read_consistently(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.create(a_record())
        await ledger.open_records("w1")
        assert double.operations[-2:] == ["Query", "BatchGetItem"]
        ((table, asked),) = double.requests[-1]["RequestItems"].items()
        assert (table, asked["ConsistentRead"]) == (ledger._table, True)

    async def test_an_empty_answer_costs_no_second_call(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        assert await ledger.open_records("nobody") == []
        assert double.operations[-1] == "Query"

    async def test_a_record_that_somebody_else_has_by_now_is_not_told(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.create(a_record("moved", owner="w2"))
        await ledger.create(a_record("released", owner=""))
        await ledger.create(replace(a_record("over"), state=LaunchState.FINISHED))
        await ledger.create(a_record("kept"))
        lagging(
            double, "Query", "launch#moved", "launch#released", "launch#over", "launch#gone", "launch#kept"
        )
        assert await ledger.open_records("w1") == [a_record("kept")]

    async def test_a_heartbeat_and_a_note_that_are_gone_are_not_told(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        lagging(double, "Query", "worker#w1")
        assert await ledger.beats() == []
        lagging(double, "Query", "stop#aaaa")
        assert await ledger.stop_requests() == []

    async def test_a_list_of_all_has_what_is_open_now_and_each_once(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        """An item that changes its holder during a Scan may be met in both places."""
        await ledger.create(a_record("moved", owner="w2"))
        await ledger.create(replace(a_record("over"), state=LaunchState.FINISHED))
        lagging(double, "Scan", "launch#moved", "launch#over", "launch#gone", "launch#moved")
        assert await ledger.records(over=False) == [a_record("moved", owner="w2")]

    async def test_it_is_read_to_its_end(self, ledger: DynamoDbLedger, double: DynamoDbDouble) -> None:
        """DynamoDB ends a page at 1 MB, which is very many keys."""
        await ledger.create(a_record("one"))
        await ledger.create(a_record("two"))
        for operation in ("Query", "Scan"):
            start = {"pk": {"S": "launch#one"}, "holder": {"S": "w1"}}
            lagging(double, operation, "launch#one", LastEvaluatedKey=start)
            lagging(double, operation, "launch#two")
        assert ids(await ledger.open_records("w1")) == ["one", "two"]
        assert ids(await ledger.records(over=False)) == ["one", "two"]
        pages = [request for request in double.requests if "ExclusiveStartKey" in request]
        assert [page["ExclusiveStartKey"] for page in pages] == [start, start]

    async def test_more_records_than_one_call_reads(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        async with asyncio.TaskGroup() as creating:
            for n in range(2 * MAX_KEYS + 1):
                creating.create_task(ledger.create(a_record(f"launch-{n:03}")))
        held = await ledger.open_records("w1")
        assert ids(held) == [f"launch-{n:03}" for n in range(2 * MAX_KEYS + 1)]
        asked = [
            len(each["RequestItems"][ledger._table]["Keys"])
            for each in double.requests
            if "RequestItems" in each
        ]
        assert asked == [MAX_KEYS, MAX_KEYS, 1]
        assert ids(await ledger.records(over=False)) == ids(held)

    async def test_keys_that_an_answer_left_out_are_asked_for_again(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        records = [a_record("one"), a_record("two"), a_record("three")]
        for record in records:
            await ledger.create(record)
        partly(double, ledger, read=[], left=records)
        partly(double, ledger, read=records[:1], left=records[1:])
        held = await ledger.open_records("w1")
        assert sorted(held, key=records.index) == records
        asked = [each["RequestItems"][ledger._table] for each in double.requests if "RequestItems" in each]
        assert [(len(each["Keys"]), each["ConsistentRead"]) for each in asked] == [
            (3, True),
            (3, True),
            (2, True),
        ]

    async def test_patience_ends_only_when_nothing_is_read_any_more(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.ledger.dynamodb_lists.backoff", lambda *_, **__: 0.0)
        records = [a_record(f"launch-{n}") for n in range(MAX_TRIES + 2)]
        for record in records:
            await ledger.create(record)
        for n in range(1, len(records)):  # slowly, but it comes to its end
            partly(double, ledger, read=records[n - 1 : n], left=records[n:])
        assert ids(await ledger.open_records("w1")) == ids(records)
        for _ in range(MAX_TRIES):
            partly(double, ledger, read=[], left=records)
        with pytest.raises(Throttled, match="8 items not read, 6 times in a row"):
            await ledger.open_records("w1")

    async def test_a_table_whose_index_holds_everything_works_as_well(self, double: DynamoDbDouble) -> None:
        """So earlier versions made it."""
        request = create_table_request("with-all")
        for index in request["GlobalSecondaryIndexes"]:
            index["Projection"] = {"ProjectionType": "ALL"}
        async with dynamodb_client(double.url) as client:
            await client.create_table(**request)
            ledger = DynamoDbLedger(client, "with-all")
            beat = WorkerBeat("w1", 1, "default", "host", 0.0)
            await ledger.create(a_record())
            await ledger.beat(beat)
            assert await ledger.open_records("w1") == [a_record()]
            assert await ledger.records(over=False) == [a_record()]
            assert await ledger.beats() == [beat]


def ids(records: Iterable[LaunchRecord]) -> list[str]:
    return sorted(record.launch_id for record in records)


def lagging(double: DynamoDbDouble, operation: str, *names: str, **members: Any) -> None:
    """The next answer of the index, as it stood a moment ago."""
    double.answer_next(operation, Items=[{"pk": {"S": name}} for name in names], **members)


def partly(
    double: DynamoDbDouble, ledger: DynamoDbLedger, *, read: list[LaunchRecord], left: list[LaunchRecord]
) -> None:
    """The next BatchGetItem is answered with some records, and some are left out."""
    keys = [key("launch", record.launch_id) for record in left]
    double.answer_next(
        "BatchGetItem",
        Responses={ledger._table: [launch_item(record) for record in read]},
        UnprocessedKeys={ledger._table: {"Keys": keys, "ConsistentRead": True}},
    )


async def index_of(ledger: DynamoDbLedger) -> list[Any]:
    """What the index holds."""
    answer = await ledger._client.scan(TableName=ledger._table, IndexName=INDEX)
    return list(answer["Items"])


class TestSaving:
    async def test_one_record_needs_no_transaction(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.create(a_record())
        double.operations.clear()
        assert await ledger.save([a_record()], owner="w1") == frozenset()
        assert double.operations == ["PutItem"]

    async def test_conflicts_pass(self, ledger: DynamoDbLedger, double: DynamoDbDouble) -> None:
        records = [a_record("one"), a_record("two")]
        for record in records:
            await ledger.create(record)
        cancel(double, "TransactionConflict", "None")
        cancel(double, "None", "ThrottlingError")
        double.fail_next("TransactWriteItems", "ThrottlingException")
        news = [replace(record, tries=1) for record in records]
        assert await ledger.save(news, owner="w1") == frozenset()
        assert [await ledger.read("one"), await ledger.read("two")] == news
        assert double.operations.count("TransactWriteItems") == 4

    async def test_lost_records_leave_the_transaction_and_conflicts_are_tried_again(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        records = [a_record("one"), a_record("two"), a_record("three")]
        for record in records:
            await ledger.create(record)
        cancel(double, "TransactionConflict", "ConditionalCheckFailed", "None")
        news = [replace(record, tries=1) for record in records]
        assert await ledger.save(news, owner="w1") == {"two"}
        assert [await ledger.read("one"), await ledger.read("three")] == [news[0], news[2]]

    async def test_a_conflict_of_a_single_write_passes(
        self, ledger: DynamoDbLedger, double: DynamoDbDouble
    ) -> None:
        await ledger.create(a_record())
        double.fail_next("PutItem", "TransactionConflictException")
        assert await ledger.save([replace(a_record(), tries=1)], owner="w1") == frozenset()
        assert await ledger.read("aaaa") == replace(a_record(), tries=1)

    async def test_patience_has_an_end(self, ledger: DynamoDbLedger, double: DynamoDbDouble) -> None:
        for _ in range(MAX_TRIES):
            cancel(double, "TransactionConflict", "TransactionConflict")
        with pytest.raises(Throttled, match="in a row"):
            await ledger.save([a_record("one"), a_record("two")], owner="w1")

    async def test_other_reasons_are_not_hidden(self, ledger: DynamoDbLedger, double: DynamoDbDouble) -> None:
        cancel(double, "ValidationError", "None")
        with pytest.raises(AwsRefused, match="TransactionCanceledException"):
            await ledger.save([a_record("one"), a_record("two")], owner="w1")

    async def test_a_record_that_is_too_big_does_not_hold_up_the_others(self, ledger: DynamoDbLedger) -> None:
        small, big, theirs = a_record("small"), a_record("big"), a_record("theirs", owner="w2")
        for record in (small, big, theirs):
            await ledger.create(record)
        news = [replace(big, message="x" * 410_000), replace(small, tries=1), theirs]
        with pytest.raises(RecordTooBig, match="launch big") as raised:
            await ledger.save(news, owner="w1")
        assert (raised.value.code, raised.value.lost) == ("LW-LEDGER-ITEM-SIZE", frozenset({"theirs"}))
        assert await ledger.read("small") == news[1]
        assert await ledger.read("big") == big

    async def test_a_record_that_is_too_big_is_not_created(self, ledger: DynamoDbLedger) -> None:
        with pytest.raises(Never) as raised:
            await ledger.create(a_record(message="x" * 410_000))
        assert raised.value.code == "LW-LEDGER-ITEM-SIZE"


def cancel(double: DynamoDbDouble, *reasons: str) -> None:
    """The next transaction is cancelled, as DynamoDB says it: a reason for each item."""
    answer = [{"Code": reason} | ({} if reason == "None" else {"Message": "…"}) for reason in reasons]
    double.fail_next("TransactWriteItems", "TransactionCanceledException", CancellationReasons=answer)


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "status", "expected"),
        [
            ("ThrottlingException", 400, Throttled),
            ("ProvisionedThroughputExceededException", 400, Throttled),
            ("RequestLimitExceeded", 400, Throttled),
            ("TransactionConflictException", 400, Throttled),
            ("InternalServerError", 500, Unreachable),
            ("ServiceUnavailable", 503, Unreachable),
            ("AccessDeniedException", 400, AwsDenied),
            ("ResourceNotFoundException", 400, SettingsError),
            ("ValidationException", 400, AwsRefused),
        ],
    )
    async def test_codes(
        self,
        ledger: DynamoDbLedger,
        double: DynamoDbDouble,
        code: str,
        status: int,
        expected: type[Exception],
    ) -> None:
        double.fail_next("UpdateItem", code, status=status)
        with pytest.raises(expected):
            await ledger.claim(a_record(), "w2")

    async def test_every_call_says_that_the_table_is_missing(self, double: DynamoDbDouble) -> None:
        async with dynamodb_client(double.url) as client:
            ledger = DynamoDbLedger(client, "nowhere")
            beat = WorkerBeat("w1", 1, "default", "host", 0.0)
            calls = [
                ledger.read("x"),
                ledger.create(a_record()),
                ledger.claim(a_record(), "w1"),
                ledger.save([a_record()], owner="w1"),
                ledger.open_records("w1"),
                ledger.beat(beat),
                ledger.beats(),
                ledger.forget_worker("w1"),
                ledger.lock("image", "w1"),
                ledger.unlock("image", "w1"),
                ledger.claim_run("r", "a", expires_at=4e9),
                ledger.records(over=False),
                ledger.records(over=True),
                ledger.stop_requests(),
            ]
            for call in calls:
                with pytest.raises(SettingsError, match="aws dynamodb create-table --table-name nowhere"):
                    await call

    async def test_a_missing_index_is_named(self, double: DynamoDbDouble) -> None:
        async with dynamodb_client(double.url) as client:
            request = create_table_request("without-index")
            del request["GlobalSecondaryIndexes"]
            request["AttributeDefinitions"] = request["AttributeDefinitions"][:1]
            await client.create_table(**request)
            with pytest.raises(SettingsError, match="holder-index"):
                await DynamoDbLedger(client, "without-index").open_records("w1")

    async def test_nobody_listens(self) -> None:
        with serve_dynamodb() as gone:
            url = gone.url
        async with dynamodb_client(url) as client:
            with pytest.raises(Unreachable):
                await DynamoDbLedger(client, "launch-ledger").read("aaaa")


class TestSizes:
    def test_transactions_are_cut_by_number(self) -> None:
        writes = [Write.of(a_record(f"launch-{n}")) for n in range(2 * MAX_TRANSACTION_ITEMS + 1)]
        batches = list(transactions(writes))
        assert [len(batch) for batch in batches] == [MAX_TRANSACTION_ITEMS, MAX_TRANSACTION_ITEMS, 1]
        assert [write for batch in batches for write in batch] == writes

    def test_transactions_are_cut_by_size(self) -> None:
        writes = [Write.of(a_record(f"launch-{n}", message="x" * 190_000)) for n in range(5)]
        batches = list(transactions(writes))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert all(sum(write.size for write in batch) <= MAX_TRANSACTION_BYTES for batch in batches)

    def test_nothing_makes_no_transaction(self) -> None:
        assert list(transactions([])) == []

    def test_names_and_utf8_values_are_counted(self) -> None:
        assert item_bytes({"pk": {"S": "launch#ü"}, "epoch": {"N": "12"}}) == 2 + 9 + 5 + 2

    def test_a_later_owner_always_fits(self) -> None:
        assert 400 * 1024 - MAX_ITEM_BYTES >= 2 * 100
