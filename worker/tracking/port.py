"""The companion runs' port: what leg 2 says about a job in W&B.

Two adapters implement it, `companion` (over HTTP, each line once) and `offline` (the wandb SDK, into a folder), held to
one contract suite (`tests/contract/test_companion.py`). Both are told a launch by its record and say the same thing
when they are told it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord
from worker.tracking.facts import RunFacts
from worker.tracking.history import Row

AlertLevel = Literal["INFO", "WARN", "ERROR"]
"""As W&B names them."""


@dataclass(frozen=True, slots=True)
class RunPath:
    """Where the worker writes about a launch."""

    entity: str
    project: str
    run: str


def companion_path(record: LaunchRecord, project: str) -> RunPath:
    """The companion's place, in `project` or, without one, beside its run; the run itself for images that do not use
    W&B (`log_target: run`)."""
    run = record.run
    if record.log_target == "run":
        return RunPath(run.entity, run.project, run.run_id)
    return RunPath(run.entity, project or run.project, f"{run.run_id}-sagemaker")


def companion_title(record: LaunchRecord) -> str:
    """The name that W&B shows."""
    title = record.name or record.run.run_id
    return title if record.log_target == "run" else f"{title} (SageMaker)"


class Companion(Protocol):
    """Writes companion runs. Every method but `path` and `address` raises `Again` when a later try may succeed."""

    def path(self, record: LaunchRecord) -> RunPath:
        """Where it writes about this launch."""
        ...

    def address(self, record: LaunchRecord) -> str:
        """Where a person finds it."""
        ...

    async def open(self, record: LaunchRecord, facts: RunFacts) -> None:
        """Create the run, or bring its facts up to date."""
        ...

    async def post_lines(
        self,
        record: LaunchRecord,
        first_line: int,
        lines: Sequence[ConsoleLine],
        *,
        first_row: int = 0,
        rows: Sequence[Row] = (),
    ) -> bool:
        """Put lines at their place in the console and rows at theirs in the history; a return means that no crash of
        the worker can lose them. True: somebody pressed Stop in the UI."""
        ...

    async def heartbeat(self, record: LaunchRecord) -> bool:
        """Keep the run alive while nothing happens; True: somebody pressed Stop in the UI."""
        ...

    async def summarize(self, record: LaunchRecord, summary: Mapping[str, Any]) -> None:
        """Say how things stand; what was said before under the same name is replaced."""
        ...

    async def alert(self, record: LaunchRecord, title: str, text: str, level: AlertLevel) -> None:
        """Send an alert of the run to those who subscribed to them in W&B; not repeatable without a second one."""
        ...

    async def upload(self, record: LaunchRecord, name: str, content: bytes) -> None:
        """Put a file into the run; the same name replaces it."""
        ...

    async def finish(self, record: LaunchRecord, summary: Mapping[str, Any], exit_code: int) -> None:
        """The last facts and the end state."""
        ...
