"""Where a scenario plays: the simulator as a process, a folder, and programs started against it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from bench.lag import LoopLag
from bench.programs import PROGRAM_CORE, SIMULATOR_CORE, Program, running_program

T = TypeVar("T")
Json = dict[str, Any]
KEY = "local" + "0" * 35
QUOTAS = {
    "CreateTrainingJob": 1.0,
    "DescribeTrainingJob": 5.0,
    "ListTrainingJobs": 2.0,
    "StopTrainingJob": 1.0,
    "FilterLogEvents": 5.0,
    "GetLogEvents": 10.0,
    "DescribeLogStreams": 25.0,
}
"""An account's quotas, calls a second, in the Region that has the lowest ones."""


@dataclass(slots=True)
class Worker:
    """A running launch-worker."""

    program: Program
    port: int
    ready_after: float
    """Seconds from its start until /readyz said yes."""
    ready_cpu: float
    """CPU seconds that this took."""


class Stage:
    """The simulator, and what is started against it."""

    def __init__(self, simulator: Program, url: str, folder: Path, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.url = url
        self.folder = folder
        self._session = session

    async def control(self, what: str, **body: Any) -> Json:
        """Tell the simulator something; see `bench.simulator.server`."""
        async with self._session.post(f"{self.url}/_bench/{what}", json=body) as response:
            answer: Json = await response.json()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    async def report(self) -> Json:
        """What the simulator has counted in its window."""
        return await self.control("report")

    async def fresh(self, **quotas: float | None) -> None:
        """No jobs, no runs, an account's usual quotas but for `quotas`."""
        await self.control("reset")
        await self.control("settings", quotas={**QUOTAS, **quotas}, profile={}, latency=0.1)

    async def get(self, url: str) -> tuple[int, str]:
        """An HTTP status and text; 0 when nobody answers."""
        try:
            async with self._session.get(url) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def lag(self, worker: Worker) -> LoopLag:
        """How late a worker's event loop has been so far."""
        return LoopLag.of((await self.get(f"http://127.0.0.1:{worker.port}/metrics"))[1])

    @property
    def aws_environment(self) -> dict[str, str]:
        """What any program needs to find the simulated AWS, and nothing of the user's own."""
        return {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},  # noqa: TID251
            "HOME": str(self.folder),
            "NO_PROXY": "127.0.0.1,localhost",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "WANDB_API_KEY": KEY,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

    @contextlib.asynccontextmanager
    async def worker(self, ledger: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[Worker]:
        """A launch-worker that is ready; `settings` are variables of its environment."""
        port = _free_port()
        environment = {
            **self.aws_environment,
            "WANDB_BASE_URL": self.url,
            "LAUNCH_QUEUE_URL": f"{self.url}/123456789012/bench",
            "LAUNCH_LEDGER": f"sqlite:///{ledger}",
            "LAUNCH_BUILDER": "none",
            "LAUNCH_HTTP_PORT": str(port),
            "LAUNCH_LOG_FORMAT": "json",
            **(settings or {}),
        }
        command = (sys.executable, "-m", "worker", "run")
        async with running_program(
            command, environment=environment, folder=self.folder, name="worker", core=PROGRAM_CORE
        ) as program:

            async def ready() -> bool:
                if not program.alive:
                    raise RuntimeError(f"the worker ended; see {program.output}")
                return (await self.get(f"http://127.0.0.1:{port}/readyz"))[0] == 200

            await until(ready, "the worker is ready", seconds=60, every=0.02)
            ready_after = time.monotonic() - program.started_at
            yield Worker(program, port, ready_after, program.usage().cpu_seconds)
            await program.end()


@contextlib.asynccontextmanager
async def open_stage(folder: Path) -> AsyncIterator[Stage]:
    """Start the simulator on its core."""
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # noqa: TID251
    async with (
        running_program(
            (sys.executable, "-m", "bench.simulator"),
            environment=environment,
            folder=folder,
            name="simulator",
            core=SIMULATOR_CORE,
        ) as simulator,
        aiohttp.ClientSession() as session,
    ):

        async def address() -> str:
            if not simulator.alive:
                raise RuntimeError(f"the simulator ended; see {simulator.output}")
            text = simulator.output.read_text()
            return text.split()[0] if "\n" in text else ""

        yield Stage(simulator, await until(address, "the simulator listens"), folder, session)


async def until(
    condition: Callable[[], Awaitable[T]], what: str, *, seconds: float = 30.0, every: float = 0.1
) -> T:
    """Wait until `condition` gives something true; raises TimeoutError, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(every)
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
