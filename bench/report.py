"""The numbers as tables for people, and as the page docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.goals import Verdict, verdicts

Json = dict[str, Any]
Draw = Callable[[Json, Path], Mapping[str, str]]
"""Makes the pictures of a run in a folder; returns file name → title (`bench.plots.draw`)."""
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_GOALS_HEAD = ("", "target", "launch-worker", "W&B's agent, same run", "")
_HEAD = (
    "scenario",
    "program",
    "result",
    "AWS calls/s",
    "throttled",
    "RSS MiB",
    "CPU",
    "simulator CPU",
    "p50 / p95 / p99 s",
    "lines",
    "lost / doubled",
    "loop lag ms, 99 % / longest",
)


def measurements(results: Json) -> Iterator[Json]:
    """All of a run."""
    for scenario in results["scenarios"]:
        yield from scenario["measurements"]


def tables(results: Json) -> str:
    """The goals and all measurements of a run, in Markdown."""
    entries = list(measurements(results))
    goals = [_goal_row(verdict) for verdict in verdicts(entries)]
    return f"{_table(_GOALS_HEAD, goals)}\n\n{_table(_HEAD, [_row(entry) for entry in entries])}"


def write_page(results: Json, docs: Path, *, draw: Draw) -> None:
    """Replace what stands between the marks of `docs`/benchmarks.md, with pictures in `docs`/img."""
    images = draw(results, docs / "img")
    path = docs / "benchmarks.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{_section(results, images)}\n{END}{after}")


def _section(results: Json, images: Mapping[str, str]) -> str:
    facts = results["machine"]
    minutes = sum(scenario["seconds"] for scenario in results["scenarios"]) / 60
    parts = [
        f"Measured {results['at']} with `{results['command']}` in {minutes:.0f} minutes, commit {facts['commit']}, on "
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
        f"Python {facts['python']}.",
        tables(results),
        "\n".join(f"- {scenario}: {note}" for scenario, note in _notes(results)),
        "\n\n".join(f"![{title}](img/{name})" for name, title in images.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(results: Json) -> Iterator[tuple[str, str]]:
    for entry in measurements(results):
        for note in entry["notes"]:
            yield f"{entry['scenario']}, {entry['program']}", note
    for scenario in results["scenarios"]:
        if "failed" in scenario:
            yield scenario["what"], f"failed: {scenario['failed']}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _goal_row(verdict: Verdict) -> tuple[str, ...]:
    said = {True: "kept", False: f"**missed**: {verdict.why}", None: "not judged"}[verdict.kept]
    return verdict.goal.what, verdict.goal.target, verdict.ours, verdict.agent, said


def _row(entry: Json) -> tuple[str, ...]:
    seconds = entry["seconds"] or 1.0
    latency, lag = entry["latency"], entry["lag"]
    waits = " / ".join(_number(latency.get(name)) for name in ("p50", "p95", "p99"))
    return (
        entry["scenario"],
        entry["program"],
        entry["result"],
        ", ".join(f"{api} {count / seconds:.2f}" for api, count in sorted(entry["calls"].items())),
        ", ".join(f"{api} {count}" for api, count in sorted(entry["throttled"].items())) or "0",
        _number(entry["rss_mib"], 0),
        _percent(entry["cpu"]),
        _percent(entry["simulator_cpu"]),
        waits if entry["lines"] and latency else "",
        f"{entry['lines']:,}" if entry["lines"] else "",
        f"{entry['lost']} / {entry['doubled']}" if entry["lines"] else "",
        f"{lag['p99'] * 1000:.0f} / {lag['max'] * 1000:.0f}" if lag else "",
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
