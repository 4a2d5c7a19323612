"""W&B's faults on the wire: a server that limits, breaks, cuts and stalls, and the real client on top of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.unit.records import record
from worker.clients import wandb_api as wandb_api_module
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.errors import Unreachable
from worker.launch.console import ConsoleLine
from worker.ledger.held import HeldLaunch
from worker.ops.metrics import Metrics
from worker.persistence import Persistence, Tried
from worker.tracking.companion import CompanionRuns

KEY = "k" * 40
T = 1_700_000_000_000


@dataclass
class Console:
    """A run's console behind HTTP, with faults; a line may be written again only by itself."""

    url: str = ""
    limit: int = 1 << 30
    """Bytes of a post; more is answered with 413."""
    faults: list[str] = field(default_factory=list)
    """For the next posts: a status, `cut before`, `cut after`, or `stall`."""
    lines: dict[int, str] = field(default_factory=dict)
    posts: list[tuple[int, int]] = field(default_factory=list)
    """(offset, lines) of what was taken."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: dict[str, Any] = json.loads(raw)
        if request.path == "/graphql":
            return web.json_response({"data": {"serverInfo": {"features": []}}})
        if len(raw) > self.limit:
            return web.Response(status=413, text="<html>413 Request Entity Too Large</html>")
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            return web.Response(status=int(fault), headers={"Retry-After": "0.01"} if fault == "429" else {})
        if fault == "stall":
            await asyncio.sleep(1.0)
        if fault != "cut before":
            self._take(body)
        if fault.startswith("cut"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({})

    def _take(self, body: dict[str, Any]) -> None:
        log = body["files"]["output.log"]
        self.posts.append((log["offset"], len(log["content"])))
        for number, text in enumerate(log["content"], log["offset"]):
            content = text.partition("] ")[2]
            assert self.lines.setdefault(number, content) == content, "written as something else"


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    running = Console()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/{path:.*}", running.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


@pytest.fixture
async def api(console: Console) -> AsyncIterator[WandbApi]:
    async with wandb_api(console.url, ApiKey(KEY), Metrics()) as opened:
        yield opened


@pytest.fixture
def runs(api: WandbApi) -> CompanionRuns:
    return CompanionRuns(api, project="")


def lines(*contents: str) -> list[ConsoleLine]:
    return [ConsoleLine(T + number, "algo-1", content) for number, content in enumerate(contents)]


FAULTS = [
    *("401", "403", "404", "409", "429", "500", "502", "503", "504"),
    *("cut before", "cut after", "stall"),
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_drops_or_doubles_a_line(
    runs: CompanionRuns, console: Console, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("worker.persistence.backoff", lambda *_, **__: 0.001)
    monkeypatch.setattr(wandb_api_module, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    held = HeldLaunch(record())
    persistence = Persistence(Metrics(), 60.0)
    for first, batch in ((0, lines("a", "b")), (2, lines("c"))):
        console.faults = [fault] * 2

        async def post(first: int = first, batch: list[ConsoleLine] = batch) -> None:
            await runs.post_lines(held.record, first, batch)

        assert await persistence.until_done(held, "log_delivery", post) is Tried.DONE
    assert console.faults == [], "every fault has happened"
    assert [console.lines[number] for number in sorted(console.lines)] == ["a", "b", "c"]


async def test_a_post_that_is_too_large_goes_in_halves(runs: CompanionRuns, console: Console) -> None:
    console.limit = 1_000
    contents = [f"{number} {'x' * 200}" for number in range(23)]
    await runs.post_lines(record(), 7, lines(*contents))
    assert console.lines == dict(enumerate(contents, 7))
    assert max(count for _, count in console.posts) > 1, "in halves, not one by one"
    await runs.post_lines(record(), 7, lines(*contents))
    assert console.lines == dict(enumerate(contents, 7)), "posted again, the same lines at the same place"


async def test_a_line_that_is_too_large_alone_is_cut_with_a_note(
    runs: CompanionRuns, console: Console
) -> None:
    console.limit = 1_000
    for _ in range(2):
        await runs.post_lines(record(), 0, lines("before", "y" * 100_000, "after"))
    assert (console.lines[0], console.lines[2]) == ("before", "after")
    assert console.lines[1].startswith("y" * 64)
    assert console.lines[1].endswith("the whole line is in Files, under logs/")
    assert console.lines[1].count("[launch-worker]") == 1


async def test_a_server_that_takes_nothing_at_all_is_a_refusal(runs: CompanionRuns, console: Console) -> None:
    console.limit = 10
    with pytest.raises(WandbRefused, match="413"):
        await runs.post_lines(record(), 0, lines("short", "z" * 300))


async def test_a_slow_answer_is_no_acknowledgement(
    runs: CompanionRuns, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_api_module, "_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    console.faults = ["stall"]
    with pytest.raises(Unreachable):
        await runs.post_lines(record(), 0, lines("a"))
