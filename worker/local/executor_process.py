"""Training jobs as local processes: for machines without docker. The image is not used, its entrypoint is.

Each instance gets a temporary folder as its /opt/ml; where it lies the program learns from the SM_* variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from worker.local.executor import FOLDERS, EntrypointNotStarted, InstanceSpec

_LINE_LIMIT = 1 << 20
_SEARCH_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


class ProcessInstance:
    """A process group in a folder."""

    def __init__(self, spec: InstanceSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Run the entrypoint in a process group of its own."""
        command = (*self._spec.entrypoint, *self._spec.arguments)
        if not self._spec.entrypoint:
            raise EntrypointNotStarted(
                "without docker a job needs AlgorithmSpecification.ContainerEntrypoint"
            )
        environment = {
            "PATH": _SEARCH_PATH,
            "HOME": str(self._folder),
            "PYTHONUNBUFFERED": "1",
            **self._spec.variables(str(self._folder / "ml")),
        }
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=_LINE_LIMIT,
                start_new_session=True,
            )
        except OSError as error:
            raise EntrypointNotStarted(f"{command[0]}: {error.strerror}") from error

    async def lines(self) -> AsyncIterator[str]:
        """stdout and stderr in one; a line beyond 1 MiB comes in pieces."""
        output = self._started.stdout
        assert output is not None
        rest = b""
        while piece := await output.read(1 << 16):
            *complete, rest = (rest + piece).split(b"\n")
            if len(rest) > _LINE_LIMIT:
                complete, rest = [*complete, rest], b""
            for line in complete:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")

    async def wait(self) -> int:
        """Exit code, as a shell would give it."""
        code = await self._started.wait()
        return code if code >= 0 else 128 - code

    async def stop(self, grace: float) -> None:
        """SIGTERM to the group; SIGKILL if it is still there after `grace` seconds."""
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)

    async def failure(self) -> str:
        """What the program wrote to $SM_OUTPUT_DIR/failure."""
        path = self._folder / "ml" / "output" / "failure"
        try:
            return path.read_text(errors="replace").strip()[:1024]
        except OSError:
            return ""

    async def remove(self) -> None:
        """Kill what is left of the group, delete the folder."""
        if self._process is not None:
            self._signal(signal.SIGKILL)  # also children that outlived the entrypoint
            await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "start() comes first"
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class ProcessExecutor:
    """Runs each instance as a process."""

    name = "process"

    def __init__(self) -> None:
        self._instances: list[ProcessInstance] = []

    async def prepare(self, image: str) -> None:
        """Nothing: no image is used."""

    async def create(self, spec: InstanceSpec) -> ProcessInstance:
        """Make the folder, with input/config as SageMaker writes it."""
        # Made and noted without an await between them: a cancellation there would leave the folder behind.
        folder = Path(tempfile.mkdtemp(prefix="launch-local-"))
        instance = ProcessInstance(spec, folder)
        self._instances.append(instance)
        for name in FOLDERS:
            (folder / "ml" / name).mkdir(parents=True, exist_ok=True)
        for name, content in spec.config_files().items():
            (folder / "ml" / "input" / "config" / name).write_bytes(content)
        return instance

    async def close(self) -> None:
        """Remove every instance; those removed already don't mind."""
        for instance in self._instances:
            await instance.remove()
        self._instances.clear()
