"""/healthz: the process lives. /readyz: it takes launches. /metrics: Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from worker.errors import SettingsError
from worker.ops.metrics import Metrics

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@contextlib.asynccontextmanager
async def serving_health(
    host: str, port: int, *, metrics: Metrics, not_ready: Callable[[], str]
) -> AsyncIterator[int]:
    """Serve the three pages; yields the port really taken.

    `not_ready` gives the reason why launches are not taken now, empty when they are. Raises `SettingsError` if
    the port is taken."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise SettingsError(
                f"LAUNCH_HTTP_PORT: cannot serve on {host}:{port}: {error.strerror}; choose another port, or 0 for any"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
