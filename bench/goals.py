"""What the project promised itself, one row each: the first table of docs/benchmarks.md.

A scenario says which of them its measurement is about, and whether it kept them (`bench.measurement.Judged`); why one
was missed is read off what else was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measurement import AGENT, WORKER

Json = dict[str, Any]
_BUSY = 0.9
"""Share of a core from which a program counts as held up by it."""
_WAITED = 0.05
"""Share of the time that a program waited for its core, from which that counts as a reason."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise."""

    key: str
    what: str
    target: str
    agent: str = "not measured"
    """What stands for W&B's agent where it was not, or cannot be, measured."""


GOALS = (
    Goal("submits", "submits without a quota, 100 ms a call", "≥ 25/s"),
    Goal("quota", "submits at a quota of 1/s", "≥ 95 % of it, 0 failed"),
    Goal("memory", "RSS at 1,000 running jobs", "≤ 200 MiB"),
    Goal("memory-5000", "RSS at 5,000 running jobs", "≤ 512 MiB"),
    Goal("cpu", "CPU at 1,000 jobs, quiet", "≤ 5 % of a core"),
    Goal("cpu-printing", "CPU at 1,000 jobs, 1 line/s each", "≤ 30 % of a core", "no live log"),
    Goal("calls", "SageMaker calls at 1,000 running jobs, steady", "≤ 0.5/s"),
    Goal(
        "latency",
        "log latency p95 from ingestion, 1,000 jobs at 1 line/s, FilterLogEvents 5/s",
        "≤ 5 s, 0 lost, 0 doubled",
        "no live log",
    ),
    Goal(
        "backlog",
        "lines through one worker, 100 jobs, waiting",
        "≥ 20,000/s, 0 lost, 0 doubled",
        "no live log",
    ),
    Goal(
        "live",
        "lines through one worker, 100 jobs, as they come",
        "≥ 20,000/s, p95 ≤ 5 s, 0 lost, 0 doubled",
        "no live log",
    ),
    Goal(
        "restart",
        "restart with 1,000 jobs, which the worker before it has given back, until all are followed",
        "≤ 30 s",
        "cannot: forgets them",
    ),
    Goal("start", "start until ready, 100 ms a call", "≤ 1 s"),
    Goal(
        "stop-companion",
        "Stop in W&B, of the companion, until StopTrainingJob, p95",
        "≤ 35 s",
        "has no such run",
    ),
    Goal(
        "stop-run",
        "Stop in W&B, of the container's run, until StopTrainingJob, p95, without LAUNCH_STOPPED_RUN_TIMEOUT (60 s)",
        "≤ 35 s",
        "not measured",
    ),
    Goal("posts-run", "most posts to one run in W&B in a second of the clock", "≤ 2"),
    Goal("posts-project", "most posts to one project in W&B in a second of the clock", "≤ 500"),
    Goal(
        "ends",
        "1,000 jobs that end at once, until all are finished (target of our own; none for the time)",
        "0 lost, 0 doubled, all in files",
        "no live log",
    ),
    Goal(
        "lag",
        "longest stall of the event loop while logs are read",
        "≤ 50 ms",
        "has no event loop of its own",
    ),
)
"""In the order of the page. Stop: companions and runs are looked at every 30 s (`LAUNCH_COMPANION_HEARTBEAT`); the time
that a stopped run has to end by itself (`LAUNCH_STOPPED_RUN_TIMEOUT`) is none here."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    goal: Goal
    ours: str
    agent: str
    kept: bool | None
    """None: not measured, or not at the size that the goal is about."""
    why: str = ""
    """Of a missed one."""


def verdicts(entries: Sequence[Json]) -> Iterator[Verdict]:
    """A row for each goal, from all measurements of a run; the worst counts where there are several."""
    for goal in GOALS:
        ours = _worst(_judged(entries, WORKER, goal.key))
        agents = [said["value"] for said, _ in _judged(entries, AGENT, goal.key)]
        agent = "; ".join(agents) or goal.agent
        if ours is None:
            yield Verdict(goal, "not measured", agent, None)
            continue
        said, entry = ours
        yield Verdict(
            goal, said["value"], agent, said["kept"], "" if said["kept"] is not False else _why(said, entry)
        )


def _judged(entries: Sequence[Json], program: str, key: str) -> list[tuple[Json, Json]]:
    return [
        (said, entry)
        for entry in entries
        if entry["program"] == program
        for said in entry["judged"]
        if said["goal"] == key
    ]


def _worst(found: Sequence[tuple[Json, Json]]) -> tuple[Json, Json] | None:
    """The one that missed by most, or came nearest to it."""
    return max(found, key=lambda pair: (pair[0]["kept"] is False, pair[0]["distance"]), default=None)


def _why(said: Json, entry: Json) -> str:
    """What held the program up, as far as the measurement shows it."""
    reasons = [said["why"]] if said["why"] else []
    if entry["lost"] or entry["doubled"]:
        reasons.append(f"lines: {entry['lost']} lost, {entry['doubled']} doubled")
    if (entry["simulator_cpu"] or 0.0) >= _BUSY:
        reasons.append(f"the simulator used {entry['simulator_cpu']:.0%} of its core and was the limit")
    if (entry["cpu"] or 0.0) >= _BUSY:
        reasons.append("the worker used all of its core")
    if entry["throttled"]:
        reasons.append("throttled: " + _counts(entry["throttled"]))
    if (waited := entry["numbers"].get("waited", 0.0)) >= _WAITED:
        reasons.append(f"the worker waited for its core for {waited:.0%} of the time")
    return "; ".join(reasons) or "nothing else was short: the worker itself"


def _counts(by_name: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(by_name.items()))
