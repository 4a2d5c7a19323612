"""LocalStack as a process of the tests: started on a free port, and surely gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aioboto3
import aiohttp

from worker.local.aws import ACCESS_KEY, REGION

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-localstack" / "bin" / "python"
STATE = ROOT / ".state" / "localstack"
"""It keeps its catalogue of services there: the first start ever takes seconds longer."""
_STARTS_WITHIN = 60.0
_STOPS_WITHIN = 5.0
"""Seconds after SIGTERM. One stop in four hangs (measured), its port closed already; then it is killed."""


class LocalStack:
    """A running LocalStack."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def session(self) -> aioboto3.Session:
        """Credentials and Region; give clients `endpoint` as `endpoint_url`."""
        return aioboto3.Session(
            region_name=REGION, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY
        )


@contextlib.asynccontextmanager
async def running_localstack(log: Path) -> AsyncIterator[LocalStack]:
    """LocalStack on loopback; what it prints goes to `log`."""
    port = _free_port()
    address = f"127.0.0.1:{port}"
    await asyncio.to_thread(STATE.mkdir, parents=True, exist_ok=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(STATE),
        "GATEWAY_LISTEN": address,
        "LOCALSTACK_HOST": address,
        "SQS_ENDPOINT_STRATEGY": "path",  # else queue URLs have a name that public DNS must resolve
        "OVERRIDE_IN_DOCKER": "0",  # it takes a machine with /.dockerenv for its own image
        "FILESYSTEM_ROOT": str(STATE),
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
    }
    with await asyncio.to_thread(log.open, "wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(PYTHON), str(Path(__file__).with_name("launcher.py")), "127.0.0.1"),
            cwd=STATE,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        await _until_healthy(process, f"http://{address}", log)
        yield LocalStack(f"http://{address}")
    finally:
        await _stop(process)


async def _until_healthy(process: asyncio.subprocess.Process, endpoint: str, log: Path) -> None:
    async with asyncio.timeout(_STARTS_WITHIN), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, await asyncio.to_thread(log.read_text)
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{endpoint}/_localstack/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOPS_WITHIN):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
