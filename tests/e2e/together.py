"""Scenarios side by side in one test process: what takes long in them is waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import pytest

from tests.e2e.process import worker_output

Outcomes = Mapping[str, Exception | None]
"""Scenario → how it failed, or None."""


async def run_together(
    names: Iterable[str],
    play: Callable[[str, Path], Awaitable[None]],
    folders: pytest.TempPathFactory,
    *,
    at_once: int,
) -> Outcomes:
    """Play scenarios, `at_once` at a time, each in a folder of its own; failures carry what the workers printed."""
    outcomes: dict[str, Exception | None] = {}
    turns = asyncio.Semaphore(at_once)

    async def take_turn(name: str) -> None:
        folder = folders.mktemp("scenario")
        async with turns:
            try:
                await play(name, folder)
            except Exception as error:  # it is raised by the test of this name
                error.add_note(worker_output(folder))
                outcomes[name] = error
            else:
                outcomes[name] = None

    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(take_turn(name), name=name)
    return outcomes
