"""Real clients meet the faults as they would come over the wire."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aioboto3
import aiohttp
import pytest
import pytest_asyncio
from aiobotocore.config import AioConfig
from aiohttp import web

from tests.chaos.plan import Kind
from tests.chaos.proxy import FaultProxy, Rule, running_proxy
from worker.clients.aws import call
from worker.errors import Again, Throttled, Unreachable
from worker.local.aws import ACCESS_KEY, REGION
from worker.local.ports import listening_socket


@dataclass
class Upstream:
    """Answers everything, and counts."""

    proxy: FaultProxy
    got: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def _upstream(*, wandb: bool) -> AsyncIterator[Upstream]:
    got: list[str] = []
    base = ""

    async def answer(request: web.Request) -> web.Response:
        got.append(request.headers.get("X-Amz-Target", request.path))
        await request.read()
        return web.json_response(
            {"Messages": [{"MessageId": "1", "ReceiptHandle": "h1", "Body": "x"}], "url": f"{base}/up"}
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    sock = listening_socket(0, "upstream", "")
    base = f"http://127.0.0.1:{sock.getsockname()[1]}"
    await web.SockSite(runner, sock).start()
    try:
        async with running_proxy(base, wandb=wandb) as proxy:
            yield Upstream(proxy, got)
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def aws() -> AsyncIterator[Upstream]:
    async with _upstream(wandb=False) as upstream:
        yield upstream


@pytest_asyncio.fixture
async def wandb() -> AsyncIterator[Upstream]:
    async with _upstream(wandb=True) as upstream:
        yield upstream


async def receive(upstream: Upstream) -> list[str]:
    session = aioboto3.Session(
        region_name=REGION, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY
    )
    config = AioConfig(retries={"total_max_attempts": 1})
    async with session.client("sqs", endpoint_url=upstream.proxy.url, config=config) as sqs:
        answer = await call(
            "ReceiveMessage", lambda: sqs.receive_message(QueueUrl=f"{upstream.proxy.url}/1/q")
        )
        return [message["ReceiptHandle"] for message in answer["Messages"]]


async def post(upstream: Upstream, path: str = "/graphql", operation: str = "UpsertBucket") -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.proxy.url}{path}", json={"operationName": operation}) as answer,
    ):
        await answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("kind", "error", "effect"),
    [
        ("AWS throttles", Throttled, False),
        ("AWS 5xx", Unreachable, False),
        ("AWS cut before", Unreachable, False),
        ("AWS cut after", Unreachable, True),
    ],
)
async def test_aws_faults_are_what_the_worker_takes_them_for(
    aws: Upstream, kind: Kind, error: type[Again], effect: bool
) -> None:
    aws.proxy.rules.append(Rule(kind, "sqs", 1))
    with pytest.raises(error):
        await receive(aws)
    assert bool(aws.got) == effect
    assert aws.proxy.hits == {kind: 1}


@pytest.mark.parametrize("kind", ["AWS 5xx", "AWS cut after"])
async def test_both_forms_of_a_fault_are_passing_trouble(aws: Upstream, kind: Kind) -> None:
    aws.proxy.rules.append(Rule(kind, "sqs", 1))
    for _ in range(2):
        with pytest.raises(Unreachable):
            await receive(aws)


async def test_only_what_a_rule_names_is_hit_and_of_that_each_nth(aws: Upstream) -> None:
    aws.proxy.rules += [Rule("AWS 5xx", "dynamodb", 1), Rule("AWS 5xx", "sqs ReceiveMessage", 2)]
    with pytest.raises(Unreachable):
        await receive(aws)
    assert await receive(aws) == ["h1"]
    with pytest.raises(Unreachable):
        await receive(aws)


async def test_a_duplicate_is_asked_for_once_a_message_is_received(aws: Upstream) -> None:
    seen: list[str] = []

    async def note(handles: list[str]) -> None:
        seen.extend(handles)

    aws.proxy.on_received = note
    aws.proxy.rules.append(Rule("duplicate delivery", "sqs ReceiveMessage", 1))
    assert await receive(aws) == ["h1"]
    assert seen == ["h1"]


@pytest.mark.parametrize(("kind", "status"), [("W&B 429", 429), ("W&B 5xx", 502)])
async def test_wandb_refuses(wandb: Upstream, kind: Kind, status: int) -> None:
    wandb.proxy.rules.append(Rule(kind, "wandb UpsertBucket", 1))
    assert await post(wandb) == status
    assert await post(wandb, "/files/acme/p/r/file_stream") == 200
    assert wandb.got == ["/files/acme/p/r/file_stream"]


@pytest.mark.parametrize(("kind", "effect"), [("W&B down", False), ("W&B cut after", True)])
async def test_wandb_does_not_answer(wandb: Upstream, kind: Kind, effect: bool) -> None:
    wandb.proxy.rules.append(Rule(kind, "", 1))
    for _ in range(2):  # without an answer, then with half of one
        with pytest.raises(aiohttp.ClientError):
            await post(wandb)
    assert bool(wandb.got) == effect


async def test_addresses_in_answers_lead_through_the_proxy(wandb: Upstream) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{wandb.proxy.url}/x") as answer:
        assert (await answer.json())["url"] == f"{wandb.proxy.url}/up"


async def test_a_compressed_post_arrives_as_it_was(wandb: Upstream) -> None:
    headers = {"Content-Encoding": "gzip"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{wandb.proxy.url}/files", data=gzip.compress(b"{}"), headers=headers) as answer,
    ):
        assert answer.status == 200
