"""The output of image builds as a file of the companion run; never console lines, which belong to the job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from worker.errors import WorkerError
from worker.launch.record import LaunchRecord
from worker.launch.redaction import hide_secrets
from worker.ops.logging import get_logger
from worker.tracking.facts import RunFacts
from worker.tracking.port import Companion

NAME = "logs/build.log"
_MAX_BYTES = 8 << 20
_MAX_END = 16_000
"""Characters of a failed build's output that go with its failure: they pass through the ledger."""

_log = get_logger()


class _Lines:
    """One build's output, cut at 8 MiB."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._size = 0

    def add(self, line: str) -> None:
        """One line; the first that does not fit is replaced by a word about it."""
        before, self._size = self._size, self._size + len(line) + 1
        if self._size <= _MAX_BYTES:
            self.lines.append(line)
        elif before <= _MAX_BYTES:
            self.lines.append("[launch-worker] the rest was cut")


class BuildLogs:
    """Keeps the output of builds until the ledger has taken in how they ended: only then, and only by the launch's
    owner, may W&B be told. Losing the file never fails a launch: a failure is told elsewhere too."""

    def __init__(
        self, companion: Companion, secrets: Iterable[str] = (), *, alerts: Collection[str] = ()
    ) -> None:
        """`secrets` are taken out of what is uploaded: a registry that refuses a login may quote it. `alerts`: the
        kinds that are wanted (LAUNCH_ALERTS)."""
        self._alerts = alerts
        self._companion = companion
        self._secrets = secrets
        self._kept: dict[str, _Lines] = {}

    def start(self, launch_id: str) -> Callable[[str], None]:
        """Begin a build's log; returns what takes its lines."""
        lines = self._kept[launch_id] = _Lines()
        return lines.add

    def drop(self, launch_id: str) -> None:
        """Forget what was not published: the try failed, and the next one builds again."""
        self._kept.pop(launch_id, None)

    def end_of(self, launch_id: str) -> str:
        """The end of the output of a build that has not been published; empty if there was none."""
        kept = self._kept.get(launch_id)
        return "\n".join(kept.lines)[-_MAX_END:] if kept else ""

    async def publish(self, record: LaunchRecord, *, failure: str = "") -> None:
        """Upload a build's log, if there was one; `failure` ends the companion run, since no job will."""
        kept = self._kept.pop(record.launch_id, None)
        if kept is None or record.log_target == "off":
            return
        if record.log_target == "files" and not failure:
            return  # the run is the container's to make
        text = "\n".join([*kept.lines, *([failure] if failure else [])])
        try:
            await self._companion.open(record, RunFacts({"launch/launch_id": record.launch_id}))
            shown = hide_secrets(text, self._secrets)
            await self._companion.upload(record, NAME, shown.encode("utf-8", "replace"))
            if failure:
                await self._companion.finish(record, {"launch/failure": failure}, 1)
                if "failure" in self._alerts:
                    title = f"{record.name or record.run.run_id}: its image could not be built"
                    await self._companion.alert(record, title, failure, "ERROR")
        except WorkerError as error:
            _log.warning("build_log_not_uploaded", launch_id=record.launch_id, error=str(error))
