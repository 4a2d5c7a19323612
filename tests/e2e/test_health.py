"""/healthz, /readyz and /metrics of a running worker."""

from __future__ import annotations

import signal
from typing import Any

import aiohttp
import pytest

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered
from tests.e2e.process import until

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


async def test_health_pages_over_a_workers_life(bench: Bench) -> None:
    worker = await bench.start(shutdown_grace="2")
    started = await worker.wait_for("worker_started")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{started['http_port']}") as http:

        async def page(path: str) -> tuple[int, Any]:
            async with http.get(path) as answer:
                return answer.status, await answer.json()

        async def ready() -> bool:
            return await page("/readyz") == (200, {"ready": True, "reason": ""})

        assert await page("/healthz") == (200, {"status": "alive"})
        await until(ready, "the worker is ready")
        case = bench.launch(numbered(3))
        await bench.send(case)
        await audit(bench, case)
        async with http.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            metrics = await answer.text()
        assert _value(metrics, "launch_log_lines_total") == 3
        await _drains(bench, worker, page)


async def _drains(bench: Bench, worker: Any, page: Any) -> None:
    """After SIGTERM, while a launch in leg 1 has its grace, the worker lives and is not ready."""
    bench.throttle(True)
    await bench.send(bench.launch(_wandb_api_key="5" * 40))
    await worker.wait_for("submit_throttled")
    worker.send_signal(signal.SIGTERM)
    await worker.wait_for("signal")
    assert await page("/readyz") == (503, {"ready": False, "reason": "shutting down"})
    assert (await page("/healthz"))[0] == 200
    assert await worker.exit_code() == 0


def _value(metrics: str, name: str) -> float:
    """The value of a metric without labels."""
    (line,) = [line for line in metrics.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])
