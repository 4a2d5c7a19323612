"""W&B's HTTP API on the wire: what counts as an acknowledgement, and what each failure means."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.errors import Throttled, Unreachable
from worker.ops.metrics import Metrics

KEY = "k" * 40


@dataclass
class Server:
    """Answers what it is told, oldest first; then `{}`."""

    url: str = ""
    answers: list[web.Response | None] = field(default_factory=list)
    """None: the connection is closed without an answer."""
    requests: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)
    """Method, path as sent, body, headers."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path, await request.read(), dict(request.headers)))
        answer = self.answers.pop(0) if self.answers else web.json_response({})
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", running.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def api(server: Server, metrics: Metrics) -> AsyncIterator[WandbApi]:
    async with wandb_api(f"{server.url}/", ApiKey(KEY), metrics) as opened:
        yield opened


def data(value: dict[str, Any]) -> web.Response:
    return web.json_response({"data": value})


async def test_graphql_sends_operation_query_and_variables_with_the_key(
    api: WandbApi, server: Server
) -> None:
    server.answers = [data({"viewer": 1})]
    assert await api.graphql("Viewer", "query Viewer { viewer }", {"a": 1}) == {"viewer": 1}
    ((method, path, body, headers),) = server.requests
    assert (method, path) == ("POST", "/graphql")
    assert json.loads(body) == {
        "operationName": "Viewer",
        "query": "query Viewer { viewer }",
        "variables": {"a": 1},
    }
    assert headers["Authorization"] == aiohttp.encode_basic_auth("api", KEY)


async def test_a_graphql_error_inside_a_success_is_a_refusal(api: WandbApi, server: Server) -> None:
    server.answers = [web.json_response({"errors": [{"message": "no such item"}, {"message": "denied"}]})]
    with pytest.raises(WandbRefused, match="no such item; denied") as refused:
        await api.graphql("Op", "", {})
    assert refused.value.status == 200


async def test_a_posts_return_is_wandbs_acknowledgement(api: WandbApi, server: Server) -> None:
    server.answers = [web.json_response({"stopped": True}), web.json_response(None), web.json_response([1])]
    assert await api.file_stream("e", "p", "r", {"complete": True}) == {"stopped": True}
    assert await api.file_stream("e", "p", "r", {}) == {}
    assert await api.file_stream("e", "p", "r", {}) == {}
    assert [path for _, path, _, _ in server.requests] == ["/files/e/p/r/file_stream"] * 3
    assert [json.loads(body) for _, _, body, _ in server.requests] == [{"complete": True}, {}, {}]


async def test_names_cannot_leave_their_place_in_an_address(api: WandbApi, server: Server) -> None:
    await api.file_stream("e", "my project/..", "r?x#y", {})
    ((_, path, _, _),) = server.requests
    assert path == "/files/e/my%20project%2F../r%3Fx%23y/file_stream"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, Throttled),
        (408, Unreachable),
        (500, Unreachable),
        (502, Unreachable),
        (503, Unreachable),
        (400, WandbRefused),
        (401, WandbRefused),
        (403, WandbRefused),
        (404, WandbRefused),
        (409, WandbRefused),
        (413, WandbRefused),
    ],
)
async def test_each_status_says_what_to_do(
    api: WandbApi, server: Server, status: int, expected: type[Exception]
) -> None:
    calls = (
        lambda: api.graphql("Op", "", {}),
        lambda: api.file_stream("e", "p", "r", {}),
        lambda: api.put_file(f"{server.url}/storage", b"x", {}),
    )
    for send in calls:
        server.answers = [web.Response(status=status, text="because")]
        with pytest.raises(expected, match=f"{status}: because"):
            await send()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("Wed, 21 Oct 2026", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 25.0),
        (None, None),
    ],
)
async def test_the_server_may_say_when(
    api: WandbApi, server: Server, header: str | None, seconds: float | None
) -> None:
    headers = {"Date": "Wed, 21 Oct 2026 07:28:05 GMT"} | ({} if header is None else {"Retry-After": header})
    server.answers = [web.Response(status=429, headers=headers)]
    with pytest.raises(Throttled) as throttled:
        await api.file_stream("e", "p", "r", {})
    assert throttled.value.retry_after == seconds


@pytest.mark.parametrize(
    "answer",
    [None, web.Response(text="{torn"), web.Response(body=b"\xff\xfe", content_type="application/json")],
)
async def test_what_is_no_answer_acknowledges_nothing(
    api: WandbApi, server: Server, answer: web.Response | None
) -> None:
    server.answers = [answer]
    with pytest.raises(Unreachable):
        await api.file_stream("e", "p", "r", {})


async def test_nobody_listens(metrics: Metrics) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with wandb_api(f"http://127.0.0.1:{closed.getsockname()[1]}", ApiKey(KEY), metrics) as api:
            with pytest.raises(Unreachable):
                await api.graphql("Op", "", {})
            with pytest.raises(Unreachable):
                await api.put_file(f"{api.base_url}/x", b"", {})


async def test_a_long_refusal_is_cut(api: WandbApi, server: Server) -> None:
    server.answers = [web.Response(status=400, text="x" * 100_000)]
    with pytest.raises(WandbRefused) as refused:
        await api.file_stream("e", "p", "r", {})
    assert len(str(refused.value)) < 1000


async def test_the_key_goes_to_wandb_and_to_nobody_else(api: WandbApi, server: Server) -> None:
    await api.put_file(f"{server.url}/storage", b"content", {"X-Goog-Meta": "1"})
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    await api.put_file(f"{elsewhere}/signed", b"content", {})
    (_, _, body, ours), (_, _, _, theirs) = server.requests
    assert (body, ours["X-Goog-Meta"]) == (b"content", "1")
    assert "Authorization" in ours
    assert "Authorization" not in theirs


async def test_features_are_asked_for_once(api: WandbApi, server: Server) -> None:
    features = [{"name": "A", "isEnabled": True}, {"name": "B", "isEnabled": False}]
    server.answers = [data({"serverInfo": {"features": features}})]
    assert await asyncio.gather(*[api.features() for _ in range(20)]) == [{"A"}] * 20
    assert await api.features() == {"A"}
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        web.json_response({"errors": [{"message": "Cannot query field features"}]}),
        web.json_response({"data": {"serverInfo": None}}),
        web.json_response({"data": None}),
    ],
)
async def test_an_old_server_has_no_features(api: WandbApi, server: Server, answer: web.Response) -> None:
    server.answers = [answer]
    assert await api.features() == frozenset()


async def test_trouble_is_not_taken_for_an_old_server(api: WandbApi, server: Server) -> None:
    server.answers = [
        web.Response(status=503),
        web.Response(status=401),
        data({"serverInfo": {"features": [{"name": "A", "isEnabled": True}]}}),
    ]
    with pytest.raises(Unreachable):
        await api.features()
    with pytest.raises(WandbRefused):
        await api.features()
    assert await api.features() == {"A"}


async def test_every_request_is_counted_by_its_end(api: WandbApi, server: Server, metrics: Metrics) -> None:
    server.answers = [web.json_response({}), web.Response(status=503), None]
    await api.file_stream("e", "p", "r", {})
    for _ in range(2):
        with pytest.raises(Unreachable):
            await api.file_stream("e", "p", "r", {})
    text = metrics.text().decode()
    assert 'launch_wandb_posts_total{status="200"} 1.0' in text
    assert 'launch_wandb_posts_total{status="503"} 1.0' in text
    assert 'launch_wandb_posts_total{status="ServerDisconnectedError"} 1.0' in text


def _with_gzip(server: Server) -> None:
    features = [{"name": "FILESTREAM_GZIP", "isEnabled": True}]
    server.answers.append(web.json_response({"data": {"serverInfo": {"features": features}}}))


async def test_large_posts_are_compressed_where_the_server_takes_it(server: Server, metrics: Metrics) -> None:
    _with_gzip(server)
    body = {"files": {"output.log": {"offset": 0, "content": ["a line"] * 10_000}}}
    async with wandb_api(server.url, ApiKey(KEY), metrics) as api:
        await api.file_stream("e", "p", "r", body)
        await api.file_stream("e", "p", "r", {})
    _, (_, _, large, headers), (_, _, small, plain) = server.requests
    assert json.loads(large) == body, "the server has undone it"
    assert headers["Content-Encoding"] == "gzip"
    assert int(headers["Content-Length"]) < 10_000
    assert (small, plain.get("Content-Encoding")) == (b"{}", None)


async def test_an_older_server_gets_plain_posts(server: Server, metrics: Metrics) -> None:
    body = {"files": {"output.log": {"offset": 0, "content": ["a line"] * 10_000}}}
    async with wandb_api(server.url, ApiKey(KEY), metrics) as api:
        await api.file_stream("e", "p", "r", body)
    assert "Content-Encoding" not in server.requests[-1][3]


async def test_posts_behind_a_pause_stay_within_wandbs_limit(server: Server, metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    async with wandb_api(server.url, ApiKey(KEY), metrics) as api:
        started = loop.time()

        async def turn() -> float:
            await api._turn("e/p")
            return loop.time() - started

        turns = await asyncio.gather(*(turn() for _ in range(600)))
    assert 21 <= sum(at <= 1.0 for at in turns) <= 500


async def test_a_project_is_posted_to_at_most_430_times_a_second(server: Server, metrics: Metrics) -> None:
    async with wandb_api(server.url, ApiKey(KEY), metrics) as api:
        api._turns["e/p"] = asyncio.get_running_loop().time() + 0.4
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(api.file_stream("e", "p", f"r{n}", {}) for n in range(45)))
        assert asyncio.get_running_loop().time() - started >= 0.4 + 44 / 430
        started = asyncio.get_running_loop().time()
        await api.file_stream("e", "another", "r", {})
        assert "e/another" in api._turns


async def test_a_body_is_made_before_its_turn_and_not_with_all_others_whose_turn_has_come(
    api: WandbApi, server: Server
) -> None:
    await api.file_stream("e", "p", "r", {})
    body = {"files": {"output.log": {"offset": 0, "content": ["as given"]}}}
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.file_stream("e", "p", "r", body))
        await asyncio.sleep(0.1)
        assert len(server.requests) == 1, "a run posts twice a second"
        body.clear()
    assert b"as given" in server.requests[1][2]
