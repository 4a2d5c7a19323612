"""Companion runs without a W&B server: the wandb SDK writes them into a folder that `wandb sync` uploads later.

Taken when `WANDB_MODE=offline` or without an API key. What is promised is less than over HTTP:

* Lines arrive at least once. A batch that the ledger holds, and that a dead worker may have written already, is
  written again; within one life of a worker nothing is written twice.
* W&B stamps a line with the time of the upload, so CloudWatch's own time and the host stand in the line's text.
* Nobody can press Stop, and there is nothing to keep alive.
* A worker that takes over, or starts again, begins another folder of the same run; sync all of them, the SDK adds
  the later ones to the earlier. A folder whose worker went before the job's end counts as failed until then.

The SDK blocks, starts a process (`wandb-core`) and threads of its own: it is imported and called in one thread only.
It acknowledges nothing, so a batch counts as written when the run's file has grown by it. Facts about the SDK were
measured with wandb 0.31.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from worker.aio import effect
from worker.errors import MustRestart, Unreachable
from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord
from worker.ops.logging import get_logger
from worker.tracking.facts import RunFacts
from worker.tracking.file_stream import console_time, within_limit
from worker.tracking.history import Row
from worker.tracking.port import AlertLevel, RunPath, companion_path, companion_title

if TYPE_CHECKING:
    from wandb import Run

_T = TypeVar("_T")

_FLUSH = 0.2
"""Seconds between two writes of wandb-core to a run's file; its own default, 15, is what a crash would lose."""
_WRITTEN_WITHIN = 30.0
"""Seconds after which a batch that is not in the file is taken for lost: wandb-core is gone or the disk is full."""
_LEFT_BEFORE_ITS_END = 1
"""Exit code of a folder that another one continues: `failed` is nearer to the truth than `finished`."""


_log = get_logger()


class WandbCoreGone(MustRestart):
    """The SDK's process has died, and the SDK cannot start another one in this process.

    No `WorkerError`, so nobody rides it out: the worker ends, is started again and goes on in another folder."""


@dataclass(slots=True)
class _OpenRun:
    """A run that this process writes. Its writes come one after another."""

    run: Run
    file: Path
    """What wandb-core writes for `wandb sync`."""
    next_line: int = 0
    """Lines before this one have been written by this process."""
    next_row: int = 0
    """The same for the history."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class OfflineRuns:
    """Writes companion runs into folders; made by `offline_runs`, which ends what it leaves open."""

    def __init__(self, sdk: ThreadPoolExecutor, folder: Path, *, project: str) -> None:
        self._sdk = sdk
        self._folder = folder
        self._project = project
        self._open: dict[RunPath, _OpenRun] = {}
        self._opening = asyncio.Lock()
        self._started = False

    def path(self, record: LaunchRecord) -> RunPath:
        """As `CompanionRuns.path`."""
        return companion_path(record, self._project)

    def address(self, record: LaunchRecord) -> str:
        """The folders to give to `wandb sync`, as a pattern."""
        return str(self._folder.absolute() / "wandb" / f"offline-run-*-{self.path(record).run}")

    async def open(self, record: LaunchRecord, facts: RunFacts) -> None:
        """Begin a folder of the run, or bring its facts up to date."""

        def tell() -> None:
            opened.run.config.update(dict(facts.config), allow_val_change=True)  # type: ignore[no-untyped-call]
            opened.run.tags = tuple(facts.tags)
            opened.run.notes = facts.notes

        with effect("open_companion"):
            opened = await self._opened(record)
            await self._write(opened, tell)

    async def post_lines(
        self,
        record: LaunchRecord,
        first_line: int,
        lines: Sequence[ConsoleLine],
        *,
        first_row: int = 0,
        rows: Sequence[Row] = (),
    ) -> bool:
        """Append lines and rows; those that this process has written already are left out. A return means that they
        are in the run's file, which survives a kill of the worker (not a power cut). Nobody can press Stop: False."""
        opened = await self._opened(record)
        for row in rows[max(0, opened.next_row - first_row) :]:
            await self._write(opened, partial(opened.run.log, _without_step(row)))
        opened.next_row = max(opened.next_row, first_row + len(rows))
        async with opened.turn:
            known = max(0, opened.next_line - first_line)
            texts = [_text(line) for line in within_limit(first_line, lines)[known:]]
            text = "\n".join(texts)
            if not texts:
                return False
            with effect("post_log_batch"):
                before = _size(opened.file)
                await self._call(lambda: opened.run.write_logs(text))
                await _grown(opened.file, before + len(text.encode()))
            opened.next_line = first_line + known + len(texts)
        return False

    async def heartbeat(self, record: LaunchRecord) -> bool:
        """Nothing to do, and nobody to press Stop: always False."""
        return False

    async def summarize(self, record: LaunchRecord, summary: Mapping[str, Any]) -> None:
        """Update the run's summary."""
        opened = await self._opened(record)
        await self._write(opened, lambda: opened.run.summary.update(dict(summary)))

    async def alert(self, record: LaunchRecord, title: str, text: str, level: AlertLevel) -> None:
        """It is sent with `wandb sync`."""
        opened = await self._opened(record)
        await self._write(opened, lambda: opened.run.alert(title, text, level=level))

    async def upload(self, record: LaunchRecord, name: str, content: bytes) -> None:
        """Put a file into the run's folder."""
        opened = await self._opened(record)

        def save() -> None:
            path = Path(opened.run.dir, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            opened.run.save(str(path), base_path=opened.run.dir, policy="now")

        with effect("upload_log_file"):
            await self._write(opened, save)

    async def finish(self, record: LaunchRecord, summary: Mapping[str, Any], exit_code: int) -> None:
        """The last facts and the end state; the folder is then complete."""
        with effect("finish_companion"):
            opened = await self._opened(record)
            await self.summarize(record, summary)
            async with opened.turn:
                await self._call(lambda: opened.run.finish(exit_code=exit_code))
            self._open.pop(self.path(record), None)

    async def close(self) -> None:
        """End the folders of runs that go on elsewhere, and wandb-core with them."""
        try:
            for opened in self._open.values():
                await self._call(partial(opened.run.finish, exit_code=_LEFT_BEFORE_ITS_END))
            if self._started:
                await self._call(_tear_down)
        except (WandbCoreGone, Unreachable) as error:
            _log.warning("offline_runs_not_closed", error=str(error))
        self._open.clear()

    async def _opened(self, record: LaunchRecord) -> _OpenRun:
        path = self.path(record)
        async with self._opening:
            if path not in self._open:
                self._started = True
                run = await self._call(lambda: _begin(self._folder, path, record))
                self._open[path] = _OpenRun(run, Path(run.dir).parent / f"run-{path.run}.wandb")
        return self._open[path]

    async def _write(self, opened: _OpenRun, write: Callable[[], object]) -> None:
        """A write that nobody has to wait for, but that must not be counted among the next batch's bytes."""
        async with opened.turn:
            await self._call(write)
            await asyncio.sleep(2 * _FLUSH)

    async def _call(self, function: Callable[[], _T]) -> _T:
        """Call the SDK in its thread. Raises `Unreachable`, or `WandbCoreGone` when wandb-core has died."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._sdk, function)
        except ConnectionError as error:
            raise WandbCoreGone(f"wandb-core is gone: {error}") from error
        except Exception as error:  # the SDK documents no errors: CommError, MailboxClosedError, OSError, …
            raise Unreachable(f"the wandb SDK failed: {type(error).__name__}: {error}") from error


def _begin(folder: Path, path: RunPath, record: LaunchRecord) -> Run:
    """In the SDK's thread: a new folder of the run."""
    import wandb  # noqa: PLC0415  # 50 MiB and half a second that an online worker does not need

    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        mode="offline",
        root_dir=str(folder.absolute()),
        console="off",
        silent=True,
        disable_git=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=_FLUSH,
        finish_timeout=_WRITTEN_WITHIN,
        # Without it a stop in the UI would send SIGINT to this process.
        stop_fn=lambda: None,
    )
    return wandb.init(
        entity=path.entity,
        project=path.project,
        id=path.run,
        name=companion_title(record),
        group=None if record.log_target == "run" else record.run.run_id,
        job_type="sagemaker",
        resume="allow",
        reinit="create_new",
        settings=settings,
    )


def _tear_down() -> None:
    import wandb  # noqa: PLC0415

    wandb.teardown()


def _text(line: ConsoleLine) -> str:
    return f"{console_time(line.timestamp)}Z [{line.label}] {line.content}"


def _without_step(row: Row) -> dict[str, Any]:
    """The SDK counts steps and seconds itself; a time that is given stays."""
    return {name: value for name, value in row.items() if name not in ("_step", "_runtime")}


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


async def _grown(file: Path, size: int) -> None:
    """Wait until the file has that size. Raises `WandbCoreGone` when it does not get there."""
    try:
        async with asyncio.timeout(_WRITTEN_WITHIN):
            while _size(file) < size:  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(_FLUSH / 4)
    except TimeoutError:
        raise WandbCoreGone(
            f"wandb-core has not written a batch to {file} within {_WRITTEN_WITHIN:.0f} s"
        ) from None


@contextlib.asynccontextmanager
async def offline_runs(folder: Path, *, project: str) -> AsyncIterator[OfflineRuns]:
    """Companion runs in `folder`/wandb; nothing of the SDK runs any more afterwards. `project` as for
    `CompanionRuns`. The SDK is started with the first run."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="wandb-sdk") as sdk:
        runs = OfflineRuns(sdk, folder, project=project)
        try:
            yield runs
        finally:
            await asyncio.shield(runs.close())
