"""Companion runs in memory: what W&B would hold, and what it would have had to hold twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import Unreachable
from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord
from worker.tracking.facts import RunFacts
from worker.tracking.history import Row
from worker.tracking.port import AlertLevel, RunPath, companion_path


class FakeCompanion:
    """An adapter of the companion's port. Writing other text over a console line is an error at once."""

    def __init__(self) -> None:
        self.console: dict[str, dict[int, ConsoleLine]] = {}
        """Launch id → line number → line."""
        self.history: dict[str, dict[int, Row]] = {}
        """Launch id → row number → row."""
        self.posts: list[tuple[str, int, int]] = []
        """(launch id, first line, lines) of each post that was acknowledged."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Launch id → file name → content."""
        self.uploads: list[str] = []
        self.opened: list[Mapping[str, Any]] = []
        self.summaries: list[Mapping[str, Any]] = []
        self.finished: list[tuple[Mapping[str, Any], int]] = []
        self.alerts: list[tuple[str, str, str, str]] = []
        """(launch id, level, title, text)."""
        self.heartbeats: list[str] = []
        self.stop_pressed = False
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next calls of any kind."""
        self.down: Exception | None = None
        """Raised by every call while set."""
        self.answering = asyncio.Event()
        """Cleared: W&B takes no post and gives no answer."""
        self.answering.set()
        self.waiting = 0
        """Posts that wait for an answer."""
        self.lost_answers = 0
        """So many posts reach W&B, but their answers get lost."""

    def path(self, record: LaunchRecord) -> RunPath:
        return companion_path(record, "")

    def address(self, record: LaunchRecord) -> str:
        return f"https://wandb.invalid/{self.path(record).run}"

    async def open(self, record: LaunchRecord, facts: RunFacts) -> None:
        await self._turn()
        self.opened.append(facts.config)

    async def post_lines(
        self,
        record: LaunchRecord,
        first_line: int,
        lines: Sequence[ConsoleLine],
        *,
        first_row: int = 0,
        rows: Sequence[Row] = (),
    ) -> bool:
        await self._turn()
        history = self.history.setdefault(record.launch_id, {})
        for number, row in enumerate(rows, first_row):
            assert history.setdefault(number, row) == row, f"row {number} was posted as something else"
        if not lines:
            return self.stop_pressed
        console = self.console.setdefault(record.launch_id, {})
        for number, line in enumerate(lines, first_line):
            assert console.setdefault(number, line) == line, f"line {number} was posted as something else"
        if self.lost_answers:
            self.lost_answers -= 1
            raise Unreachable("the answer got lost")
        self.posts.append((record.launch_id, first_line, len(lines)))
        return self.stop_pressed

    async def heartbeat(self, record: LaunchRecord) -> bool:
        await self._turn()
        self.heartbeats.append(record.launch_id)
        return self.stop_pressed

    async def summarize(self, record: LaunchRecord, summary: Mapping[str, Any]) -> None:
        await self._turn()
        self.summaries.append(summary)

    async def alert(self, record: LaunchRecord, title: str, text: str, level: AlertLevel) -> None:
        await self._turn()
        self.alerts.append((record.launch_id, level, title, text))

    async def upload(self, record: LaunchRecord, name: str, content: bytes) -> None:
        await self._turn()
        files = self.files.setdefault(record.launch_id, {})
        assert files.setdefault(name, content) == content, f"{name} was uploaded as something else"
        self.uploads.append(name)

    async def finish(self, record: LaunchRecord, summary: Mapping[str, Any], exit_code: int) -> None:
        await self._turn()
        self.finished.append((summary, exit_code))

    def lines(self, launch_id: str) -> list[str]:
        """The console of a launch; a gap is an error."""
        console = self.console.get(launch_id, {})
        assert sorted(console) == list(range(len(console))), "the console has gaps"
        return [console[number].content for number in range(len(console))]

    async def _turn(self) -> None:
        self.waiting += 1
        try:
            await self.answering.wait()
            await asyncio.sleep(0)
        finally:
            self.waiting -= 1
        if self.down is not None:
            raise self.down
        if self.errors:
            raise self.errors.pop(0)
