"""The registry that takes the pushes: Debian's `docker-registry` as a subprocess, its storage in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from worker.errors import WorkerError

PROGRAM = "docker-registry"
_SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
_START_LIMIT = 10.0
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_UNTIL_STDIN_ENDS = 'exec 3<&0; "$0" serve "$1" & child=$!; (read _ <&3; kill $child) & wait $child'
"""A shell that ends the registry when its own stdin ends: so it never outlives this process, however that dies."""
_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:0"}}
"""


class RegistryNotRunning(WorkerError):
    """The registry program is missing or did not start."""


def registry_program() -> str | None:
    """Where the program is, or None."""
    return shutil.which(PROGRAM, path=_SEARCH_PATH)


@contextlib.asynccontextmanager
async def running_registry() -> AsyncIterator[str]:
    """Run an empty registry; yields its address. Raises `RegistryNotRunning`."""
    program = registry_program()
    if program is None:
        raise RegistryNotRunning(f"{PROGRAM} is not installed (Debian package `docker-registry`)")
    with tempfile.TemporaryDirectory(prefix="launch-registry-") as name:
        folder = Path(name)
        (folder / "config.yml").write_text(_CONFIG.format(folder=folder / "storage"))
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _UNTIL_STDIN_ENDS,
                program,
                str(folder / "config.yml"),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={},
            )
        try:
            yield f"http://{await _address(process, log)}"
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


async def _address(process: asyncio.subprocess.Process, log: Path) -> str:
    """The program picks a free port itself and tells it in its log."""
    try:
        async with asyncio.timeout(_START_LIMIT):
            while True:
                text = await asyncio.to_thread(log.read_text, errors="replace")
                if match := _LISTENING.search(text):
                    return match[1]
                if process.returncode is not None:
                    raise RegistryNotRunning(f"{PROGRAM} ended at once: {text[-500:]}")
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise RegistryNotRunning(f"{PROGRAM} did not start within {_START_LIMIT:g} s") from error
