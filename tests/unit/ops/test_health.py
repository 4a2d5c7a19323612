"""The three pages."""

from __future__ import annotations

import aiohttp
import pytest

from worker.errors import SettingsError
from worker.ops.health import serving_health
from worker.ops.metrics import Metrics


async def get(port: int, page: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{page}") as response,
    ):
        return response.status, response.headers["Content-Type"], await response.text()


async def test_healthz_and_metrics_answer_whatever_readyz_says() -> None:
    metrics = Metrics()
    metrics.messages.inc(3)
    async with serving_health("127.0.0.1", 0, metrics=metrics, not_ready=lambda: "no") as port:
        assert port > 0
        assert (await get(port, "/healthz"))[0] == 200
        status, kind, text = await get(port, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "launch_messages_total 3.0" in text.splitlines()
        assert (await get(port, "/other"))[0] == 404


async def test_readyz_says_why_not() -> None:
    reason = "the queue does not answer"
    async with serving_health("127.0.0.1", 0, metrics=Metrics(), not_ready=lambda: reason) as port:
        status, _, text = await get(port, "/readyz")
        assert (status, text) == (503, '{"ready": false, "reason": "the queue does not answer"}')
        reason = ""
        status, _, text = await get(port, "/readyz")
        assert (status, text) == (200, '{"ready": true, "reason": ""}')


async def test_a_taken_port_is_a_wrong_setting() -> None:
    async with serving_health("127.0.0.1", 0, metrics=Metrics(), not_ready=str) as port:
        with pytest.raises(SettingsError, match=rf"LAUNCH_HTTP_PORT: cannot serve on 127\.0\.0\.1:{port}"):
            async with serving_health("127.0.0.1", port, metrics=Metrics(), not_ready=str):
                pass


async def test_the_port_is_free_again_afterwards() -> None:
    async with serving_health("127.0.0.1", 0, metrics=Metrics(), not_ready=str) as port:
        pass
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(port, "/healthz")
