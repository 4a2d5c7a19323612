"""Waiting for what has no event of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, limit: float = 5.0) -> None:
    """Look until the condition holds; `TimeoutError` after `limit` seconds."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110  # conditions of any kind
            await asyncio.sleep(0.002)
