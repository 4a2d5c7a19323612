"""`launch-worker dlq` against moto's SQS: looking removes nothing, sending back keeps the launch."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from tests.unit.launches import message
from worker.cli import app
from worker.errors import BadMessage
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.launch.identity import launch_id
from worker.launch.record import Failure, JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.sqlite import open_sqlite_ledger
from worker.local.aws import LocalAws, running_aws
from worker.operating.dead_letters import CannotSendBack, DeadLetters, by_launch, matching, open_dead_letters
from worker.operating.sending_again import CannotRetry, open_sending_again
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Bench:
    """A queue with letters in its DLQ, and a ledger."""

    sqs: SQSClient
    queue_url: str
    environment: Mapping[str, str]
    folder: Path

    @property
    def settings(self) -> Settings:
        return load_settings(None, self.environment)

    async def refuse(self, body: dict[str, Any] | str, *, code: str = "LW-POLICY", attempt: int = 1) -> str:
        """As a worker leaves a refused launch: record and letter. Returns its id."""
        text = body if isinstance(body, str) else json.dumps(body)
        identity = launch_id(("direct", "default", json.loads(text).get("launchId", "none")))
        record = LaunchRecord(
            launch_id=identity,
            state=LaunchState.REFUSED,
            run=RunRef("acme", "vision", "run-1"),
            failure=Failure("agent", code, "not allowed"),
            message_id="m-1",
            given_id=json.loads(text).get("launchId", ""),
            reported=True,
            attempt=attempt,
            finished_at=1.0,
            expires_at=4e9,
        )
        async with open_sqlite_ledger(self.folder / "ledger.db") as ledger:
            await ledger.create(record)
        queue = LaunchQueue(self.sqs, await queue_facts(self.sqs, self.queue_url, ""))
        attributes = {"reason": "not allowed", "stage": "agent", "code": code, "launchId": identity}
        attributes["attempt"] = str(attempt) if attempt > 1 else ""
        await queue.copy_to_dlq(text, identity, attributes)
        return identity

    async def record(self, identity: str) -> LaunchRecord:
        async with open_sqlite_ledger(self.folder / "ledger.db") as ledger:
            found = await ledger.read(identity)
        assert found is not None
        return found

    async def sent(self) -> list[str]:
        answer = await self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10)
        return [raw["Body"] for raw in answer.get("Messages", [])]

    @contextlib.asynccontextmanager
    async def letters(self) -> AsyncIterator[DeadLetters]:
        async with open_dead_letters(self.settings) as opened:
            yield opened

    async def ids(self) -> list[str]:
        async with self.letters() as letters, letters.looking() as found:
            return [letter.launch_id for letter in found.letters]


def body(name: str = "", **spec: Any) -> dict[str, Any]:
    value = {**message(**spec), "launchId": name or uuid.uuid4().hex}
    del value["runQueueItemId"]
    return value


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto is one server."""
    monkeypatch.setattr("worker.intake.dead_letter_queue.LONG_POLL", 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aws_on_loopback() -> AsyncIterator[LocalAws]:
    async with running_aws() as running:
        yield running


both_kinds = pytest.mark.parametrize("bench", [False, True], ids=["standard", "fifo"], indirect=True)


@pytest_asyncio.fixture(loop_scope="module")
async def bench(
    aws_on_loopback: LocalAws,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    fifo: bool = getattr(request, "param", False)
    unique, suffix = uuid.uuid4().hex[:8], ".fifo" if fifo else ""
    kind: dict[Any, str] = {"FifoQueue": "true"} if fifo else {}
    endpoint = aws_on_loopback.endpoint
    async with aws_on_loopback.session().client("sqs", endpoint_url=endpoint) as sqs:
        dlq = (await sqs.create_queue(QueueName=f"dlq-{unique}{suffix}", Attributes=kind))["QueueUrl"]
        arn = (await sqs.get_queue_attributes(QueueUrl=dlq, AttributeNames=["QueueArn"]))["Attributes"]
        redrive = json.dumps({"deadLetterTargetArn": arn["QueueArn"], "maxReceiveCount": 1000})
        queue = await sqs.create_queue(
            QueueName=f"q-{unique}{suffix}", Attributes={**kind, "RedrivePolicy": redrive}
        )
        environment = {
            "LAUNCH_QUEUE_URL": queue["QueueUrl"],
            "LAUNCH_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": aws_on_loopback.region,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Bench(sqs, queue["QueueUrl"], environment, tmp_path)


async def test_looking_twice_shows_the_same_and_more_than_one_receive_gives(bench: Bench) -> None:
    wanted = [await bench.refuse(body(f"n-{number}")) for number in range(13)]
    for _ in range(2):
        assert sorted(await bench.ids()) == sorted(wanted)


async def test_what_somebody_else_looks_at_is_told_of(bench: Bench) -> None:
    await bench.refuse(body())
    async with bench.letters() as letters, letters.looking() as first:
        assert (len(first.letters), first.more) == (1, 0)
        async with letters.looking() as second:
            assert (len(second.letters), second.more) == (0, 1)


@both_kinds
async def test_a_launch_goes_back_as_a_new_attempt(bench: Bench) -> None:
    given = body("again")
    identity = await bench.refuse(given)
    async with bench.letters() as letters, letters.looking() as found:
        sent = await letters.send_back(matching(found.letters, identity[:8], deployment="default"))
    assert (sent.launch_id, sent.attempt) == (identity, 2)
    assert [json.loads(text) for text in await bench.sent()] == [given]
    record = await bench.record(identity)
    assert (record.state, record.attempt, record.owner, record.failure) == (LaunchState.INTENT, 2, "", None)
    assert (record.expires_at, record.reported, json.loads(record.message)) == (0, False, given)
    assert await bench.ids() == []


async def test_sending_back_is_repeatable_at_any_point(bench: Bench) -> None:
    """It died after the record was opened, or after the message was sent: the letter is still there."""
    identity = await bench.refuse(body("twice"))
    async with bench.letters() as letters, letters.looking() as found:
        await letters._reopen(await bench.record(identity), found.letters[0].body)
    async with bench.letters() as letters, letters.looking() as found:
        sent = await letters.send_back(found.letters)
    assert sent.attempt == 2
    assert len(await bench.sent()) == 1
    assert (await bench.record(identity)).attempt == 2


async def test_a_launch_that_is_under_way_is_not_sent_again(bench: Bench) -> None:
    identity = await bench.refuse(body("runs"))
    async with open_sqlite_ledger(bench.folder / "ledger.db") as ledger:
        claimed = await ledger.claim(await bench.record(identity), "w")
        assert claimed is not None
        running = LaunchRecord(
            launch_id=identity,
            state=LaunchState.ACCEPTED,
            run=claimed.run,
            owner="w",
            epoch=claimed.epoch,
            attempt=2,
        )
        await ledger.save([running], owner="w")
    async with bench.letters() as letters, letters.looking() as found:
        sent = await letters.send_back(found.letters)
    assert (sent.message_id, "under way" in sent.note) == ("", True)
    assert (await bench.sent(), await bench.ids()) == ([], [])


@pytest.mark.parametrize(
    ("corrected", "error", "says"),
    [
        (None, CannotSendBack, "--message"),
        ("{}", BadMessage, "runSpec"),
        (json.dumps(body("another")), CannotSendBack, "keep its launchId"),
    ],
)
async def test_what_cannot_go_back_stays(
    bench: Bench, corrected: str | None, error: type[Exception], says: str
) -> None:
    identity = await bench.refuse(body("secret", _wandb_api_key="***"))
    async with bench.letters() as letters, letters.looking() as found:
        with pytest.raises(error, match=says):
            await letters.send_back(found.letters, corrected)
    assert await bench.ids() == [identity]
    assert (await bench.record(identity)).state is LaunchState.REFUSED
    assert await bench.sent() == []


async def test_a_corrected_message_takes_the_place_of_the_letters(bench: Bench) -> None:
    identity = await bench.refuse(body("secret", _wandb_api_key="***"))
    whole = json.dumps(body("secret", _wandb_api_key="0" * 40))
    async with bench.letters() as letters, letters.looking() as found:
        await letters.send_back(found.letters, whole)
    assert await bench.sent() == [whole]
    assert "0" * 40 not in (await bench.record(identity)).message


def nameless(given: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in given.items() if name != "launchId"})


async def test_a_corrected_message_without_a_name_is_that_of_the_letter(bench: Bench) -> None:
    """`enqueue` has named it; the file at hand has no name."""
    given = body("named by enqueue")
    identity = await bench.refuse(given)
    async with bench.letters() as letters, letters.looking() as found:
        sent = await letters.send_back(found.letters, nameless(given))
    assert (sent.launch_id, sent.attempt) == (identity, 2)
    assert [json.loads(text) for text in await bench.sent()] == [given]


async def test_after_its_letter_is_gone_the_ledger_knows_its_name(bench: Bench) -> None:
    given = body("purged")
    identity = await bench.refuse(given)
    assert (await run("purge", "purged"))[0] == 0, "by the message's own launchId"
    async with open_sending_again(bench.settings) as sending:
        sent = await sending.retry("purged", nameless(given))
    assert (sent.launch_id, sent.attempt) == (identity, 2)
    assert [json.loads(text) for text in await bench.sent()] == [given]
    assert (await bench.record(identity)).given_id == "purged"


async def test_a_letter_knows_the_name_that_the_ledger_has_not_kept(bench: Bench) -> None:
    given = body("of before")
    identity = await bench.refuse(given)
    async with open_sqlite_ledger(bench.folder / "ledger.db") as ledger:
        claimed = await ledger.claim(await bench.record(identity), "w")
        assert claimed is not None
        await ledger.save([replace(claimed, given_id="", owner="")], owner="w")
    async with bench.letters() as letters, letters.looking() as found:
        assert (await letters.send_back(found.letters, nameless(given))).launch_id == identity


async def test_a_corrected_message_of_a_queue_item_is_given_its_item(bench: Bench) -> None:
    item = {**message(), "runQueueItemId": "item-9", "entity": "acme"}
    identity = launch_id(("https://api.wandb.ai", "acme", "item-9"))
    refused = LaunchRecord(
        launch_id=identity,
        state=LaunchState.REFUSED,
        run=RunRef("acme", "vision", "run-1"),
        item_id="item-9",
        queue_entity="acme",
        failure=Failure("agent", "LW-POLICY", "not allowed"),
        reported=True,
    )
    async with open_sqlite_ledger(bench.folder / "ledger.db") as ledger:
        await ledger.create(refused)
    bare = {name: value for name, value in item.items() if name not in ("runQueueItemId", "entity")}
    async with open_sending_again(bench.settings) as sending:
        assert (await sending.retry(identity, json.dumps(bare))).launch_id == identity
    assert [json.loads(text) for text in await bench.sent()] == [item]


async def test_with_another_ledger_nothing_is_sent(bench: Bench) -> None:
    await bench.refuse(body("elsewhere"))
    (bench.folder / "ledger.db").rename(bench.folder / "other.db")
    async with bench.letters() as letters, letters.looking() as found:
        with pytest.raises(CannotSendBack, match="LAUNCH_LEDGER"):
            await letters.send_back(found.letters)


@both_kinds
async def test_a_message_that_sqs_moved_becomes_a_launch_of_its_own(bench: Bench) -> None:
    facts = await queue_facts(bench.sqs, bench.queue_url, "")
    extra: dict[str, Any] = (
        {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if facts.dlq_url.endswith(".fifo") else {}
    )
    await bench.sqs.send_message(QueueUrl=facts.dlq_url, MessageBody=nameless(body()), **extra)
    async with bench.letters() as letters, letters.looking() as found:
        (letter,) = found.letters
        assert (letter.code, letter.launch_id) == ("", "")
        sent = await letters.send_back(found.letters)
    assert sent.launch_id == launch_id(("direct", "default", letter.message_id))
    assert [json.loads(text)["launchId"] for text in await bench.sent()] == [letter.message_id]


@both_kinds
async def test_all_letters_of_a_launch_go_with_it(bench: Bench) -> None:
    """Refused again within five minutes, which is SQS's own time for doubles."""
    await bench.refuse(body("double"))
    await bench.refuse(body("double"), attempt=2)
    await bench.refuse(body("single"))
    async with bench.letters() as letters, letters.looking() as found:
        groups = by_launch(found.letters)
        assert sorted(map(len, groups)) == [1, 2]
        await letters.send_back(next(group for group in groups if len(group) == 2))
    assert len(await bench.ids()) == 1


async def test_a_retry_goes_on_where_one_before_has_ended_between_ledger_and_queue(bench: Bench) -> None:
    given = body("halfway")
    identity = await bench.refuse(given)
    async with bench.letters() as letters, letters.looking() as found:
        await letters._reopen(await bench.record(identity), found.letters[0].body)
    async with open_sending_again(bench.settings) as sending:
        sent = await sending.retry(identity)
        assert (sent.attempt, bool(sent.message_id)) == (2, True)
        assert [json.loads(text) for text in await bench.sent()] == [given]
        with pytest.raises(CannotRetry, match="not over"):
            await sending.retry(identity)
        assert (await sending.retry(identity, json.dumps(given))).message_id, "its letter was gone before"
    assert await bench.ids() == []


async def test_a_letter_that_somebody_else_looks_at_is_not_called_gone(bench: Bench) -> None:
    identity = await bench.refuse(body("looked at"))
    async with open_sending_again(bench.settings) as sending, bench.letters() as letters:
        async with letters.looking():
            with pytest.raises(CannotRetry, match="two minutes"):
                await sending.retry(identity)
            code, _, err = await run("show", identity)
            assert (code, "two minutes" in err) == (1, True)
        assert (await sending.retry(identity)).attempt == 2


async def test_a_job_whose_log_is_on_its_way_is_to_be_retried_shortly_and_not_stopped(bench: Bench) -> None:
    failed = LaunchRecord(
        launch_id="a" * 26,
        state=LaunchState.ACCEPTED,
        run=RunRef("acme", "vision", "run-1"),
        owner="w",
        job_name="run-1",
        facts=JobFacts("Failed", "Failed", "exit code: 1"),
    )
    async with open_sqlite_ledger(bench.folder / "ledger.db") as ledger:
        await ledger.create(failed)
    async with open_sending_again(bench.settings) as sending:
        with pytest.raises(CannotRetry, match="log; retry it shortly") as raised:
            await sending.retry("run-1")
    assert "launch-worker stop" not in str(raised.value)


async def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """The command in a thread: it has an event loop of its own."""
    import asyncio

    result = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


async def test_the_commands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    assert await run("list") == (0, "no dead letters\n", "")
    item = {**body("x"), "runQueueItemId": "item-7"}
    identity = await bench.refuse(body("first"))
    cut = await bench.refuse(body("second", _wandb_api_key="***"))
    for _ in range(2):
        code, out, _ = await run("list", "--json")
        listed = json.loads(out)
        assert (code, listed["more"], {letter["launchId"] for letter in listed["letters"]}) == (
            0,
            0,
            {identity, cut},
        )
    _, out, _ = await run("list")
    assert [line.split()[1:4] for line in out.splitlines() if not line.startswith("    ")] == [
        ["launchId", "code", "stage"],
        *([letter["launchId"], "LW-POLICY", "agent"] for letter in listed["letters"]),
    ], "whole ids, a line each, however narrow the terminal is"
    assert out.count("\n    not allowed\n") == 2
    code, out, _ = await run("show", identity[:6])
    assert (code, "not allowed" in out, '"launchId": "first"' in out) == (0, True, True)
    assert (await run("show", "first"))[:2] == (code, out), "by the message's own launchId"
    for command in ("show", "purge", "retry"):
        code, _, err = await run(command, "nothing")
        assert (code, err.split(":")[0], "dlq list" in err) == (1, "LW-NO-SUCH-LETTER", True)
    code, out, err = await run("retry", "--all")
    assert (code, f"sent back launch {identity} as attempt 2" in out, "--message FILE" in err) == (
        1,
        True,
        True,
    )
    (bench.folder / "whole.json").write_text(json.dumps(body("second", _wandb_api_key="0" * 40)))
    code, out, _ = await run("retry", cut, "--message", "whole.json", "--json")
    assert (code, json.loads(out)["attempt"]) == (0, 2)
    assert await run("list") == (0, "no dead letters\n", "")
    gone = await bench.refuse(item)
    code, out, _ = await run("purge", gone)
    assert (code, "deleted 1" in out) == (0, True)
    for wrong in (("retry",), ("retry", "x", "--all"), ("retry", "--all", "--message", "whole.json")):
        code, _, err = await run(*wrong)
        assert (code, err.split(":")[0]) == (2, "LW-USAGE")
    assert "not both" in (await run("retry", "x", "--all"))[2]
    monkeypatch.setenv("LAUNCH_QUEUE_URL", "")
    assert (await run("list"))[0] == 2
