"""What workers say of themselves at /metrics, held against what happened past them: by the proxies, by AWS, in W&B.

Counters die with their process. What a worker counted between its last scrape and its end nobody knows; in that time,
its *gap*, the proxies saw all that any worker did. So a sum over all processes is at most what happened, and at least
that without what happened in gaps. A worker that is told to leave, or wakes after a freeze, drops requests whose
answer is on its way: these seconds are gaps as well. Nothing else is forgiven. `disagreements` is pure; `Scrapes`
reads the pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.proxy import Request
from worker.ops.rates import QUOTAS

_EVERY = 0.5
"""Seconds between two scrapes of a worker."""
_PATIENCE = 2.0
"""Seconds; a frozen worker answers when it is awake again."""
_LATE = 0.5
"""Seconds by which a worker may count an answer after it was sent."""

_CANCELS = 2.0
"""Seconds in which a worker that is interrupted drops what it is doing."""

Series = tuple[str, str]
"""(metric, label values joined by commas)."""
_AT_REST = ("launch_jobs", "launch_in_work", "launch_leases", "launch_waiting", "launch_building")
"""Gauges of what a worker has in hand."""


@dataclass(eq=False, slots=True)
class Life:
    """One process of a worker. Times are monotonic seconds."""

    log: Path
    started_at: float
    pid: int = 0
    ended_at: float = float("inf")
    scraped_at: float = 0.0
    """When the last scrape that was answered was asked for; 0: none was."""
    values: Mapping[Series, float] = field(default_factory=dict)
    port: int = 0
    interrupted: list[float] = field(default_factory=list)
    """When it was told to leave, or woke after a freeze: then it drops what it is doing."""

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """When it may have counted what no scrape has, or cancelled what was answered."""
        last = (self.scraped_at - _LATE if self.scraped_at else self.started_at, self.ended_at)
        return [last, *((at - _LATE, at + _CANCELS) for at in self.interrupted)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What happened, as others saw it."""

    requests: Sequence[Request]
    """Of all workers, to AWS and W&B."""
    jobs: int
    refusals: int
    lines: int
    """In the consoles of W&B."""
    ended: Sequence[float]
    """When workers wrote into their logs that a launch has finished; monotonic seconds."""
    refused: Sequence[float]
    """The same for refusals."""
    told_by_others: int
    """Refusals that a worker took over from another, and told without handling the message."""


def disagreements(lives: Sequence[Life], truth: Truth) -> list[str]:
    """Where the sums over all workers cannot be what happened."""
    total: defaultdict[Series, float] = defaultdict(float)
    for life in lives:
        for series, value in life.values.items():
            total[series] += value
    bounds = dict(_bounds(lives, truth))
    wrong = [
        f"{what}: the workers count {total[series]:g}, which has to be from {least} to {most}"
        for series, (what, least, most) in bounds.items()
        if not least <= total[series] <= most
    ]
    known = {series[1] for series in bounds if series[0] == "launch_wandb_posts_total"}
    for (metric, status), count in total.items():
        if metric == "launch_wandb_posts_total" and status.isdigit() and status not in known:
            wrong.append(f"W&B's answers {status}: the workers count {count:g}, and there was none")
    made = total["launch_submits_total", "created"] + total["launch_submits_total", "adopted"]
    lost = sum(_in_gap(lives, r) for r in truth.requests if r.name.endswith(" CreateTrainingJob"))
    if made < truth.jobs - lost:
        wrong.append(
            f"jobs created or adopted: the workers count {made:g} of {truth.jobs}, at most {lost} in gaps"
        )
    return wrong


def at_rest(lives: Sequence[Life]) -> list[str]:
    """What workers that live say they have in hand."""
    return [
        f"{life.log.name}: {metric} {labels} is {value:g}".replace("  ", " ")
        for life in lives
        if life.ended_at == float("inf")
        for (metric, labels), value in life.values.items()
        if metric in _AT_REST and value
    ]


def _bounds(lives: Sequence[Life], truth: Truth) -> Iterator[tuple[Series, tuple[str, int, int]]]:
    """Series → what it is, its least and its greatest sum."""
    ends = sum(life.ended_at != float("inf") for life in lives)
    for api in QUOTAS:
        calls = [r for r in truth.requests if r.name.split(" ")[-1] == api]
        lost = sum(_in_gap(lives, call) for call in calls)
        # A worker counts a call when it begins: one that ends may have begun one of each.
        yield ("launch_aws_calls_total", api), (f"calls of {api}", len(calls) - lost, len(calls) + ends)
        throttled = [call for call in calls if call.throttled]
        sure = sum(call.whole and not _in_gap(lives, call) for call in throttled)
        yield ("launch_aws_throttles_total", api), (f"throttled calls of {api}", sure, len(throttled))
    posts = [r for r in truth.requests if r.name.startswith("wandb ")]
    for status in sorted({post.status for post in posts}):
        same = [post for post in posts if post.status == status]
        sure = sum(post.whole and not _in_gap(lives, post) for post in same)
        yield ("launch_wandb_posts_total", str(status)), (f"W&B's answers {status}", sure, len(same))
    taken = [post for post in posts if post.status == 200 and post.lines]
    sure = sum(post.lines for post in taken if post.whole and not _in_gap(lives, post))
    most = sum(post.lines for post in taken if post.whole)
    yield ("launch_log_lines_total", ""), ("lines that W&B took", min(sure, truth.lines), most)
    yield ("launch_submits_total", "created"), ("jobs created", 0, truth.jobs)
    lost = sum(_was_in_gap(lives, at) for at in truth.ended)
    ended = ("launch_jobs_ended_total", "")
    yield ended, ("ends of jobs", truth.jobs - lost, truth.jobs)
    lost = sum(_was_in_gap(lives, at) for at in truth.refused) + truth.told_by_others
    yield ("launch_outcomes_total", "never"), ("refusals", truth.refusals - lost, truth.refusals)


def _in_gap(lives: Sequence[Life], request: Request) -> bool:
    """Some worker may have made it and not told."""
    return any(
        request.answered_at >= start and request.received_at <= end
        for life in lives
        for start, end in life.gaps
    )


def _was_in_gap(lives: Sequence[Life], at: float) -> bool:
    return any(start <= at <= end for life in lives for start, end in life.gaps)


def read_page(text: str) -> dict[Series, float]:
    """The series of a page by their labels; ends of jobs of all kinds, and refusals of all stages, are one."""
    values: defaultdict[Series, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [*sample.labels.values()]
            if sample.name == "launch_jobs_ended_total":
                labels = []
            if sample.name == "launch_outcomes_total":
                labels = [sample.labels["outcome"]]
            values[sample.name, ",".join(labels)] += sample.value
    return dict(values)


class Scrapes:
    """Asks all living workers for their pages, again and again."""

    def __init__(self, http: aiohttp.ClientSession, lives: Sequence[Life]) -> None:
        """`lives` grows while workers are started."""
        self._http = http
        self._lives = lives

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(_EVERY)

    async def once(self) -> None:
        """Each living worker once; who does not answer keeps what it said before."""
        living = [life for life in self._lives if life.ended_at == float("inf")]
        async with asyncio.TaskGroup() as tasks:
            for life in living:
                tasks.create_task(self._scrape(life), name=f"scrape {life.log.name}")

    async def _scrape(self, life: Life) -> None:
        life.port = life.port or await asyncio.to_thread(_port_in, life.log)
        if not life.port:
            return
        asked_at = time.monotonic()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            timeout = aiohttp.ClientTimeout(total=_PATIENCE)
            async with self._http.get(f"http://127.0.0.1:{life.port}/metrics", timeout=timeout) as answer:
                text = await answer.text()
            life.values, life.scraped_at = read_page(text), asked_at


def _port_in(log: Path) -> int:
    """Where a worker serves its page, by its log; 0: it has not started yet."""
    for line in log.read_text(errors="replace").splitlines():
        if '"worker_started"' in line:
            with contextlib.suppress(ValueError):
                return int(json.loads(line)["http_port"])
    return 0
