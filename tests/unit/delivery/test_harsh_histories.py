"""Each line exactly once, in its stream's order, over random histories: whatever CloudWatch does within its documents,
whatever W&B answers, and whenever workers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Literal

import hypothesis.strategies as st
import looptime
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.fakes.aws_errors import AwsError
from tests.fakes.cloudwatch_logs import CloudWatchLogs, Stored
from tests.fakes.companion import FakeCompanion
from tests.fakes.ledger import MemoryLedger
from tests.unit.delivery.harsh import HOUR, Delivering, aws_now, use_virtual_time
from worker.aio import observe_effects
from worker.errors import Throttled, Unreachable
from worker.ledger.held import HeldLaunch

STREAMS = ("job-1/algo-1-1700000000", "job-1/algo-2-1700000000")


class KilledError(BaseException):
    """kill -9: nothing of the worker runs on."""


printing = st.tuples(
    st.just("print"),
    st.sampled_from(STREAMS),
    st.lists(st.sampled_from(["epoch", "loss", ".", "a\nb"]), min_size=1, max_size=6),
    st.sampled_from([0, 0, 0, 1, 40, 5_000, 900_000]),
    st.sampled_from([0.0, 0.0, 0.0, 0.4, 3.0, 12.0]),
)
"""Stream, texts of one PutLogEvents, their age in ms, seconds until they can be seen."""
waiting = st.tuples(st.just("wait"), st.sampled_from([0.001, 0.5, 2.0, 7.0, 150.0]))
killing = st.tuples(st.just("kill"), st.integers(0, 6), st.sampled_from(["before", "after"]))
"""The worker dies at its so-many-th assignment from now, and another one takes over."""
trouble = st.tuples(
    st.just("trouble"), st.sampled_from(["throttle", "break", "lose", "refuse"]), st.integers(1, 3)
)
steps = st.lists(st.one_of(printing, printing, waiting, waiting, killing, trouble), min_size=1, max_size=25)


class History:
    """What happens to one launch's log."""

    def __init__(self, page: int, empty: int) -> None:
        self.logs = CloudWatchLogs(aws_now)
        self.logs.page_events, self.logs.empty_before = page, lambda number: empty
        self.companion = FakeCompanion()
        self.ledger = MemoryLedger()
        self.workers = 0
        self.worker: Delivering
        self.held: HeldLaunch
        self.stack = contextlib.AsyncExitStack()
        self.kill_in: int | None = None
        self.kill_when = "before"

    async def play(self, plan: list[tuple[object, ...]]) -> None:
        observe_effects(self._observe)
        try:
            await self._start()
            for step in plan:
                await self._step(step)
            await self._revive()
            self.kill_in = None
            await asyncio.sleep(15)  # the last put can be seen before the job's end is told
            await self.worker.end(self.held, limit=3 * HOUR)
            await self.stack.aclose()
        finally:
            observe_effects(None)

    async def _step(self, step: tuple[object, ...]) -> None:
        await self._revive()
        match step:
            case ("print", str(stream), list(texts), int(age), float(lag)):
                self.logs.put(stream, *texts, age_ms=age, visible_in=lag)
            case ("wait", float(seconds)):
                await asyncio.sleep(seconds)
            case ("kill", int(count), str(when)):
                self.kill_in, self.kill_when = count, when
            case ("trouble", str(kind), int(times)):
                self._trouble(kind, times)
        await asyncio.sleep(0.002)

    def _trouble(self, kind: str, times: int) -> None:
        match kind:
            case "throttle":
                self.logs.failures += [AwsError("ThrottlingException")] * times
            case "break":
                self.logs.failures += [AwsError("InternalFailure", status=500)] * times
            case "lose":
                self.companion.lost_answers += times
            case "refuse":
                self.companion.errors += [
                    Unreachable("no answer"),
                    Throttled("slower", retry_after=3.0),
                ] * times

    def _observe(self, when: Literal["before", "after"], name: str) -> None:
        if name != "assign_log_batch" or self.kill_in is None or when != self.kill_when:
            return
        self.kill_in -= 1
        if self.kill_in < 0:
            self.kill_in = None
            raise KilledError

    async def _start(self) -> None:
        self.workers += 1
        self.worker = Delivering(self.logs, self.companion, self.ledger, name=f"worker-{self.workers}")
        if self.workers == 1:
            self.held = await self.worker.follow(instance_count=2, owner=self.worker.name)
        else:
            self.held = await self.worker.adopt()
        self.run = asyncio.ensure_future(self.worker.delivery.run(self._on_delivered))
        self.stack.push_async_callback(self._stop)

    def _on_delivered(self, held: HeldLaunch) -> None:
        self.worker.delivered.append(held.launch_id)

    async def _stop(self) -> None:
        self.run.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await self.run

    async def _revive(self) -> None:
        if self.run.done():
            await self.stack.aclose()
            await self._start()

    def audit(self) -> None:
        console = self.companion.console.get("launch-1", {})
        assert sorted(console) == list(range(len(console))), "no gap"
        for stream in STREAMS:
            stored = sorted(self.logs.events.get(stream, []), key=lambda event: event.order)
            label = stream.split("/")[1].rpartition("-")[0]
            lines = [line.content for _, line in sorted(console.items()) if line.label == label]
            wanted = Counter(line for event in stored for line in event.message.split("\n"))
            assert Counter(lines) == wanted, "each line exactly once"
            assert _is_subsequence(
                [line for event in stored if not _late(event, stored) for line in event.message.split("\n")],
                lines,
            ), "in the order of its stream, but for what came late"


def _late(event: Stored, stored: list[Stored]) -> bool:
    if event.visible_at * 1000 - event.timestamp > 100_000:
        return True  # a silent stream counts as read up to two minutes ago
    return any(
        other.order > event.order and other.visible_at < event.visible_at + 0.001 and other.put != event.put
        for other in stored
    )


def _is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(any(line == other for other in rest) for line in part)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from([1, 2, 3, 7, 10_000]), st.integers(0, 2))
@example([("print", STREAMS[0], ["a\nb"], 0, 0.0), ("kill", 0, "after"), ("wait", 7.0)], 10_000, 0)
@example([("print", STREAMS[0], ["a"], 0, 3.0), ("print", STREAMS[0], ["b"], 0, 0.0)], 1, 1)
def test_each_line_exactly_once(plan: list[tuple[object, ...]], page: int, empty: int) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=looptime.new_event_loop) as runner,
    ):
        use_virtual_time(patch)
        patch.setattr("worker.aio.random", random.Random(0))
        history: History | None = None

        async def play() -> None:
            nonlocal history
            history = History(page, empty)
            await history.play(plan)

        runner.run(play())
        assert history is not None
        history.audit()
