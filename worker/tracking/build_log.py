"""The output of an image build as a file of the companion run; never console lines, which belong to the job."""

from __future__ import annotations

from worker.errors import WorkerError
from worker.launch.record import LaunchRecord
from worker.ops.logging import get_logger
from worker.tracking.port import Companion

NAME = "logs/build.log"
_MAX_BYTES = 8 << 20

_log = get_logger()


class BuildLog:
    """Collects one build's lines. Losing the file never fails a launch: a failure is told elsewhere too."""

    def __init__(self, companion: Companion, record: LaunchRecord) -> None:
        self._companion = companion
        self._record = record
        self._lines: list[str] = []
        self._size = 0
        self._cut = False

    def add(self, line: str) -> None:
        """One line of output; beyond 8 MiB lines are dropped, and the file says so."""
        self._size += len(line) + 1
        if self._size <= _MAX_BYTES:
            self._lines.append(line)
        else:
            self._cut = True

    async def close(self, *, failure: str = "") -> None:
        """Upload what was collected; `failure` ends the companion run, since no job will."""
        text = "\n".join(
            [*self._lines, *(["[launch-worker] the rest was cut"] if self._cut else []), failure]
        )
        try:
            await self._companion.open(self._record, {"launch/launch_id": self._record.launch_id})
            await self._companion.upload(self._record, NAME, text.encode("utf-8", "replace"))
            if failure:
                await self._companion.finish(self._record, {"launch/failure": failure}, 1)
        except WorkerError as error:
            _log.warning("build_log_not_uploaded", launch_id=self._record.launch_id, error=str(error))
