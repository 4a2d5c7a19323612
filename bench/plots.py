"""Pictures of a run: how launches become jobs, what running jobs cost, how fast a restart is over and a Stop works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from bench.measurement import AGENT, WORKER
from bench.report import measurements

Json = dict[str, Any]
_COLOURS = {WORKER: "#1b6ca8", AGENT: "#c1440e"}


def draw(results: Json, folder: Path) -> dict[str, str]:
    """Write the pictures; returns file name → title."""
    folder.mkdir(parents=True, exist_ok=True)
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    entries = list(measurements(results))
    drawn = {}
    for name, title, plot in (
        ("bench-submits.svg", "Launches sent at once become training jobs", _submits),
        ("bench-memory.svg", "Memory of running, quiet jobs", _memory),
        ("bench-restart.svg", "After a start: jobs whose log moves again", _restart),
        ("bench-stops.svg", "Stop in W&B, beside all running jobs", _stops),
    ):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        if plot(entries, axes):
            axes.set_title(title)
            axes.grid(visible=True, alpha=0.3)
            axes.legend()
            figure.savefig(folder / name, metadata={"Date": None})
            drawn[name] = title
        plt.close(figure)
    return drawn


def _submits(entries: Sequence[Json], axes: Any) -> bool:
    chosen = [entry for entry in entries if entry["samples"].get("created")]
    for entry in chosen:
        created = sorted(entry["samples"]["created"])
        axes.step(
            created,
            range(1, len(created) + 1),
            where="post",
            color=_COLOURS[entry["program"]],
            linestyle=_line(entry["scenario"]),
            label=f"{entry['program']}, {entry['scenario']}",
        )
    axes.set_xlabel("seconds since they were sent")
    axes.set_ylabel("training jobs")
    axes.set_xscale("log")
    return bool(chosen)


def _line(scenario: str) -> str:
    return "-" if "no quota" in scenario else "--" if "quota" in scenario else ":"


def _memory(entries: Sequence[Json], axes: Any) -> bool:
    chosen = [entry for entry in entries if entry["scenario"].endswith("jobs, quiet")]
    for program, colour in _COLOURS.items():
        points = sorted(
            (int(entry["scenario"].split()[0]), entry["rss_mib"])
            for entry in chosen
            if entry["program"] == program
        )
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{program}, measured")
    for entry in chosen:
        if "extrapolated" in entry["numbers"]:
            count = int(entry["scenario"].split()[0])
            far = entry["numbers"]["extrapolated"]["gib_at_1000"] * 1024
            axes.plot(
                [count, 1000],
                [entry["rss_mib"], far],
                ":",
                color=_COLOURS[AGENT],
                label=f"{AGENT}, extrapolated",
            )
    axes.axhline(1024, color="black", linewidth=0.8, label="t2.micro: 1 GiB")
    axes.set_xlabel("running jobs")
    axes.set_ylabel("MiB")
    axes.set_xscale("log")
    axes.set_yscale("log")
    return bool(chosen)


def _restart(entries: Sequence[Json], axes: Any) -> bool:
    axes.set_xlabel("seconds since the worker was started")
    axes.set_ylabel("jobs")
    return _steps(entries, axes, "followed")


def _stops(entries: Sequence[Json], axes: Any) -> bool:
    axes.set_xlabel("seconds since Stop was pressed")
    axes.set_ylabel("jobs that SageMaker was asked to stop")
    return _steps(entries, axes, "stops")


def _steps(entries: Sequence[Json], axes: Any, series: str) -> bool:
    """How many had happened by when, a line for each measurement that has this series."""
    chosen = [entry for entry in entries if entry["samples"].get(series)]
    names = [entry["scenario"] for entry in chosen]
    for number, entry in enumerate(chosen, 1):
        moments = sorted(entry["samples"][series])
        label = (
            entry["scenario"] if names.count(entry["scenario"]) == 1 else f"{entry['scenario']} ({number})"
        )
        axes.step([0, *moments], range(len(moments) + 1), where="post", label=label)
    return bool(chosen)
