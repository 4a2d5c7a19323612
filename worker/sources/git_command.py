"""git as a subprocess that cannot ask, cannot be talked into other transports, and cannot outlive its caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from worker.errors import Again

Configuration = tuple[tuple[str, str], ...]
"""Keys and values, in order; a key may come more than once."""

INHERITED = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "SSH_AUTH_SOCK",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_SSH_VARIANT",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_SYSTEM",
        "GIT_CONFIG_NOSYSTEM",
        "GIT_EXEC_PATH",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "GIT_SSL_CERT",
        "GIT_SSL_KEY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CURL_CA_BUNDLE",
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    }
)
"""Variables of the worker that git may see: where its configuration, keys and proxies are."""
INHERITED_PREFIXES = ("AWS_",)
"""For CodeCommit's credential helper, which is a program of the operator's choice."""

_FIXED_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",  # set but empty: neither core.askPass nor SSH_ASKPASS is run
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    # Beats every protocol.* of the configuration, also after redirects and url.*.insteadOf (git, "GIT_ALLOW_PROTOCOL").
    "GIT_ALLOW_PROTOCOL": "https:ssh",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "LC_ALL": "C",
}
_FIXED_CONFIGURATION: Configuration = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("core.askPass", ""),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("transfer.bundleURI", "false"),  # the server would name further URLs
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    # Always one pack, so that the limit of a file's size is the limit of a fetch.
    ("fetch.unpackLimit", "1"),
    # The same commit is the same files, whatever the worker's user has configured for himself.
    ("core.autocrlf", "false"),
    ("core.eol", "lf"),
    ("core.symlinks", "true"),
    ("core.attributesFile", os.devnull),
    ("http.lowSpeedLimit", "1000"),  # bytes a second,
    ("http.lowSpeedTime", "60"),  # for so many seconds: a stalled transfer
)

_MAX_OUTPUT = 8 << 20
_MAX_MESSAGES = 64 << 10
_PIPE_GRACE = 2.0
_READ = 1 << 16
# The shell sets a limit that git and all its children inherit; POSIX counts blocks of 512 bytes. With the signal
# ignored, git says "File too large" instead of dying without a word.
# Where the host allows less than that, its limit stays.
_LIMITED = 'trap "" XFSZ; ulimit -f "$0" 2>/dev/null; exec "$@"'
_BLOCK = 512


class GitFailed(Exception):
    """git ended with an error; `messages` is what it wrote to standard error, its end if that was long."""

    def __init__(self, status: int, messages: str) -> None:
        super().__init__(f"git ended with {status}")
        self.status = status
        self.messages = messages


class GitCommand:
    """One way to run git, for all that is done with it."""

    def __init__(
        self, environ: Mapping[str, str], *, max_file_bytes: int, configuration: Configuration = ()
    ) -> None:
        """`environ`: what git inherits. No file that git writes grows beyond `max_file_bytes`."""
        self._environ = environ
        self._max_file_bytes = max_file_bytes
        self._configuration = configuration

    @property
    def has_ssh_command(self) -> bool:
        """The operator has set how ssh is run, by an environment variable."""
        return "GIT_SSH_COMMAND" in self._environ or "GIT_SSH" in self._environ

    def configured(self, configuration: Configuration) -> GitCommand:
        """The same with more configuration, which wins over what there is."""
        return GitCommand(
            self._environ,
            max_file_bytes=self._max_file_bytes,
            configuration=(*self._configuration, *configuration),
        )

    async def run(
        self, *arguments: str, folder: Path, consume: Callable[[bytes], None] | None = None
    ) -> bytes:
        """Run `git ARGUMENTS` in `folder`; returns its output, or hands it to `consume` as it comes.

        Raises `GitFailed`; `Again` when git cannot be started. What `consume` raises ends git. When cancelled, git and
        all its children are killed."""
        kept = _Kept()
        async with _message_pipe() as (messages, sending):
            try:
                process = await self._start(arguments, folder, sending)
            finally:
                os.close(sending)
            try:
                text = await _read(process, messages, consume or kept)
            finally:
                await _end(process)
        if process.returncode:
            raise GitFailed(process.returncode, text)
        return bytes(kept.output)

    async def _start(
        self, arguments: Sequence[str], folder: Path, messages: int
    ) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _LIMITED,
                str(-(-self._max_file_bytes // _BLOCK)),
                "git",
                *arguments,
                cwd=folder,
                env=self._environment(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=messages,
                start_new_session=True,
            )
        except OSError as error:
            raise Again(f"git cannot be started: {error.strerror}") from error

    def _environment(self, folder: Path) -> dict[str, str]:
        entries = (*_FIXED_CONFIGURATION, *self._configuration)
        # Not `-c`: arguments can be seen by every user of the host.
        counted = {"GIT_CONFIG_COUNT": str(len(entries))}
        for number, (key, value) in enumerate(entries):
            counted |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        ceiling = {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
        return {**self._environ, **_FIXED_ENVIRONMENT, **ceiling, **counted}


class _Kept:
    """Output that is returned; what is asked for this way is short."""

    def __init__(self) -> None:
        self.output = bytearray()

    def __call__(self, chunk: bytes) -> None:
        self.output += chunk
        if len(self.output) > _MAX_OUTPUT:
            raise Again("git wrote more than was expected")


@contextlib.asynccontextmanager
async def _message_pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """A pipe for standard error, closed by us: a connection that ssh keeps in the background may hold it open, and
    asyncio's own pipes would make us wait for that."""
    receiving, sending = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(receiving, "rb", buffering=0)
    )
    try:
        yield reader, sending
    finally:
        transport.close()


async def _read(
    process: asyncio.subprocess.Process, messages: asyncio.StreamReader, consume: Callable[[bytes], None]
) -> str:
    """Hand the output on to its end; returns the end of the messages."""
    assert process.stdout is not None
    tail = bytearray()

    async def drain() -> None:
        while chunk := await messages.read(_READ):
            tail.extend(chunk)
            del tail[:-_MAX_MESSAGES]

    try:
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(drain(), name="git messages")
            while chunk := await process.stdout.read(_READ):
                consume(chunk)
            await process.wait()
            await asyncio.wait([draining], timeout=_PIPE_GRACE)
            draining.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tail.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs of git, and wait for it."""
    assert process.stdout is not None
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    while await process.stdout.read(
        _READ
    ):  # asyncio waits for the pipe, which stands still when nobody reads
        pass
    await process.wait()
