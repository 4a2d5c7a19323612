"""How the docker API's requests and answers go over the wire."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from worker.clients.docker_types import RegistryAuth

_CHUNK = 1 << 20


async def read_messages(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """JSON lines of any length; aiohttp's own reader of lines has a limit."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """A file from disk; reading in a thread keeps the loop free."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
    finally:
        file.close()


def auth_header(auth: RegistryAuth | None) -> str:
    """Value of X-Registry-Auth; the daemon wants one even without credentials."""
    if auth is None:
        return header({})
    return header({"username": auth.username, "password": auth.password, "serveraddress": auth.server})


def header(value: Mapping[str, Any]) -> str:
    """JSON as base64url, as the daemon takes it in a header."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
