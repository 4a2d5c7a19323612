"""How the process ends: by a signal, in two steps, or at a named effect, for crash tests."""

from __future__ import annotations

import asyncio
import os
import signal

from worker.aio import observe_effects
from worker.ops.logging import get_logger

_LAST_MOMENT = 1.0
"""Seconds between a second signal and the end, at most."""

_log = get_logger()


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at the first SIGTERM or SIGINT; the second one ends the task that called, and soon the process."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None

    def on_signal(name: str) -> None:
        _log.info("signal", name=name, second=stop.is_set())
        if stop.is_set():
            # What is cancelled gives its message back where that takes no time; nothing is waited for.
            loop.call_later(_LAST_MOMENT, os._exit, 1)
            main.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)


def crash_at(point: str) -> None:
    """Die at one named effect, as a power cut would: for crash tests. Empty: nowhere."""

    def observer(when: str, name: str) -> None:
        if f"{when}:{name}" == point:
            os.kill(os.getpid(), signal.SIGKILL)

    if point:
        observe_effects(observer)
