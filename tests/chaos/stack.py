"""The local stack in a process of its own, so that its slowness is not the harness's.

`python -m tests.chaos.stack EXECUTOR` prints what a harness has to know as one line of JSON, takes commands as lines
of JSON on its input, and ends when that is closed: it never outlives the harness.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.chaos.plan import ExecutorKind
from worker.local.images import ensure_busybox_image
from worker.local.stack import LocalServices, running_stack
from worker.local.wandb_strict import STRICT
from worker.settings import inherited_environment

_ROOT = Path(__file__).parents[2]
_STATE = _ROOT / ".state"
"""Debian packages for the test image, kept between runs."""
_STARTS_WITHIN = 120.0
_STOPS_WITHIN = 30.0
_STREAM_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """Where the parts of the stack are."""

    environment: Mapping[str, str]
    queue_url: str
    dlq_url: str
    table: str
    role_arn: str
    image: str


class Stack:
    """The running process, from the harness's side."""

    def __init__(self, process: asyncio.subprocess.Process, facts: Facts) -> None:
        self._process = process
        self.facts = facts

    @property
    def pid(self) -> int:
        """Its process id: containers are labelled with it."""
        return self._process.pid

    async def delay_logs(self, seconds: float) -> None:
        """What containers print from now on reaches CloudWatch so much later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"log_delay": seconds}).encode() + b"\n")
        await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def running_stack_process(folder: Path, executor: ExecutorKind) -> AsyncIterator[Stack]:
    """Start it with `folder/stack` for its temporary files and `folder/stack.log`; nothing of it runs afterwards."""
    await asyncio.to_thread((folder / "stack").mkdir)
    with await asyncio.to_thread((folder / "stack.log").open, "wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.stack", executor),
            cwd=_ROOT,
            env={
                **inherited_environment({"PATH", "PYTHONPATH", "HOME", "DOCKER_HOST"}),
                "TMPDIR": str(folder / "stack"),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_STREAM_LIMIT,
            start_new_session=True,  # Ctrl+C is for the harness, which then ends this process
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_STARTS_WITHIN):
            line = await process.stdout.readline()
        if not line:
            text = await asyncio.to_thread((folder / "stack.log").read_text)
            raise RuntimeError(f"the local stack did not start:\n{text[-2000:]}")
        yield Stack(process, Facts(**json.loads(line)))
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOPS_WITHIN):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _serve(executor: ExecutorKind) -> None:
    async with running_stack(executor=executor, stop_grace=1) as services:
        # A post that is held up on the wire until its worker is dead may come after the end that another one told.
        services.wandb.strict = replace(STRICT, revives=False)
        image = await _training_image(services)
        facts = Facts(
            environment=services.environment,
            queue_url=services.queue_url,
            dlq_url=services.dlq_url,
            table=services.table,
            role_arn=services.role_arn,
            image=image,
        )
        sys.stdout.write(json.dumps(asdict(facts)) + "\n")
        sys.stdout.flush()
        try:
            await _obey(services)
        finally:
            if services.docker is not None and executor == "docker":
                await services.docker.images.delete(image, noprune=True)


async def _training_image(services: LocalServices) -> str:
    """An image with a shell. Processes need none, only its name."""
    if services.executor.name != "docker":
        return "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-dev:chaos"
    assert services.docker is not None
    assert services.ecr is not None, services.missing
    local = await ensure_busybox_image(services.docker, _STATE)
    image = await services.ecr.seed_image(services.docker, local, "launch-dev", "chaos")
    await services.executor.prepare(image)
    return image


async def _obey(services: LocalServices) -> None:
    """Until the input is closed."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        while line := await reader.readline():
            services.sagemaker.log_delay = float(json.loads(line)["log_delay"])
    finally:
        transport.close()


if __name__ == "__main__":
    chosen: ExecutorKind = "docker" if sys.argv[1] == "docker" else "process"
    asyncio.run(_serve(chosen))
