"""The W&B double's pages: the addresses that the worker prints lead to what W&B was told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from worker.local import wandb_pages
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_file_stream import take_post
from worker.local.wandb_records import CONSOLE

RUN = "/acme/demo/runs/r1-sagemaker"


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    """With a companion run of which each part is told, some of it in a markup of its own."""
    async with running_wandb_double() as double:
        run = double.run_by_hand("acme", "demo", "r1-sagemaker")
        run.fields |= {"displayName": "first <launch>", "groupName": "r1", "tags": ["a", "b"], "notes": "why"}
        run.config |= {"lr": {"value": 0.1}, "job": {"value": {"Name": "j"}}, "_wandb": {"value": {"t": {}}}}
        run.summary |= {"cost": 1.25}
        run.alerts.append({"title": "Failed", "text": "out & over"})
        run.files |= {"logs/al go.log": "whole log ü".encode()}
        lines = ["plain <script>alert(1)</script>", '{"ts": "t", "label": "algo-1", "content": "epoch 1"}']
        take_post(run, "", {"files": {CONSOLE: {"offset": 0, "content": lines}}})
        take_post(run, "", {"complete": True, "exitcode": 3})
        yield double


async def read(double: WandbDouble, path: str, status: int = 200) -> tuple[str, str]:
    """The type and the text of a page that a browser gets without a key."""
    async with aiohttp.ClientSession() as session, session.get(f"{double.base_url}{path}") as response:
        assert response.status == status
        return response.content_type, await response.text()


async def test_a_run_shows_what_it_was_told(double: WandbDouble) -> None:
    kind, page = await read(double, RUN)
    assert kind == "text/html"
    for part in (
        "failed, exit code 3", "r1", "a, b", "why", "lr</td><td>0.1", "{&quot;Name&quot;: &quot;j&quot;}", "1.25",
        "out &amp; over", "epoch 1", "first &lt;launch&gt;",
    ):  # fmt: skip
        assert part in page
    assert "_wandb" not in page


async def test_what_others_wrote_is_text(double: WandbDouble) -> None:
    _, page = await read(double, RUN)
    assert "<script" not in page
    assert "plain &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert await read(double, f"{RUN}/files/logs/al%20go.log") == ("text/plain", "whole log ü")
    assert f'href="{RUN}/files/logs/al%20go.log"' in page


async def test_the_way_from_the_first_page_to_a_run(double: WandbDouble) -> None:
    assert 'href="/acme/demo"' in (await read(double, "/"))[1]
    _, project = await read(double, "/acme/demo")
    assert f'href="{RUN}"' in project
    assert "failed" in project
    assert 'href="/acme/demo"' in (await read(double, RUN))[1]


async def test_a_long_console_says_what_it_leaves_out(
    double: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_pages, "LINES", 1)
    _, page = await read(double, RUN)
    assert "The last 1 of 2 lines" in page
    assert "epoch 1" in page
    assert "alert(1)" not in page


@pytest.mark.parametrize(
    "path", ["/acme/other", "/acme/demo/runs/gone", f"{RUN}/files/gone", "/_double/gone"]
)
async def test_what_is_not_there_is_404(double: WandbDouble, path: str) -> None:
    await read(double, path, status=404)


async def test_nothing_ran_yet() -> None:
    async with running_wandb_double() as double:
        assert "No run yet" in (await read(double, "/"))[1]
