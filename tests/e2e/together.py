"""Scenarios side by side in one test process: nearly all of their time is waiting.

Each has a queue, a ledger and workers of its own, and a test that shows how it went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from tests.e2e.bench import Bench, LedgerKind
from tests.e2e.conftest import Stack
from tests.e2e.process import worker_output

Scenario = Callable[[Bench], Awaitable[None]]
Scenarios = Mapping[str, tuple[LedgerKind, Scenario]]
"""Name, which is also the parameter of its test → which ledger, what happens."""
Outcomes = Mapping[str, Exception | None]
"""Name → how it failed, or None."""

_AT_ONCE = 8
"""As many as keep two cores busy."""


async def run_together(
    scenarios: Scenarios, stack: Stack, folders: pytest.TempPathFactory, session: pytest.Session
) -> Outcomes:
    """Play those scenarios whose tests are to run; failures carry what the workers printed."""
    outcomes: dict[str, Exception | None] = {}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def play(name: str, folder: Path) -> None:
        ledger, scenario = scenarios[name]
        async with turns:
            try:
                async with stack.bench(folder, ledger=ledger) as bench:
                    await scenario(bench)
            except Exception as error:  # it is raised by the test of this name
                error.add_note(worker_output(folder))
                outcomes[name] = error
            else:
                outcomes[name] = None

    async with asyncio.TaskGroup() as tasks:
        for name in scenarios:
            if any(f"[{name}]" in item.name for item in session.items):
                tasks.create_task(play(name, folders.mktemp("scenario")), name=name)
    return outcomes
