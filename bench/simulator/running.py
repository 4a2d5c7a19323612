"""Serving the simulator on loopback: in this process for tests, as `python -m bench.simulator` for benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from bench.simulator.server import Simulator

_MAX_BODY = 64 << 20


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Posts of log lines are larger than aiohttp's usual megabyte."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY)


@contextlib.asynccontextmanager
async def running_simulator(port: int = 0) -> AsyncIterator[Simulator]:
    """Serve a simulator on 127.0.0.1; `base_url` says where."""
    simulator = Simulator()
    # The bare server without routes: each request costs what it must.
    runner = web.ServerRunner(web.Server(simulator.handle, request_factory=_request, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound = runner.addresses[0][:2]
        simulator.base_url = f"http://{host}:{bound}"
        yield simulator
    finally:
        await runner.cleanup()
