"""The numbers as a table for people, and as the page docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_HEAD = (
    "scenario",
    "program",
    "result",
    "target",
    "AWS calls/s",
    "throttled",
    "RSS MiB",
    "CPU",
    "simulator CPU",
    "p50 / p95 / p99 s",
    "lines",
    "lost / doubled",
)


def measurements(results: Json) -> Iterator[Json]:
    """All of a run."""
    for scenario in results["scenarios"]:
        yield from scenario["measurements"]


def table(results: Json) -> str:
    """A Markdown table of a run."""
    rows = [_HEAD, tuple("---" for _ in _HEAD), *(_row(entry) for entry in measurements(results))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_page(results: Json, docs: Path) -> None:
    """Replace what stands between the marks of docs/benchmarks.md, and draw docs/img/bench-*.svg."""
    from bench.plots import draw  # needs the extra `bench`

    images = draw(results, docs / "img")
    path = docs / "benchmarks.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{_section(results, images)}\n{END}{after}")


def _section(results: Json, images: Mapping[str, str]) -> str:
    facts = results["machine"]
    parts = [
        f"Measured {results['at']} with `{results['command']}`, commit {facts['commit']}, on {facts['cores']} cores "
        f"of {facts['cpu']}, {facts['memory_gib']} GiB, Linux {facts['kernel']}, Python {facts['python']}.",
        table(results),
        *(f"- {scenario}: {note}" for scenario, note in _notes(results)),
        *(f"![{title}](img/{name})" for name, title in images.items()),
    ]
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:]) + "\n"


def _notes(results: Json) -> Iterator[tuple[str, str]]:
    for entry in measurements(results):
        for note in entry["notes"]:
            yield f"{entry['scenario']}, {entry['program']}", note
    for scenario in results["scenarios"]:
        if "failed" in scenario:
            yield scenario["what"], f"failed: {scenario['failed']}"


def _row(entry: Json) -> tuple[str, ...]:
    seconds = entry["seconds"] or 1.0
    target = entry["target"]
    latency = entry["latency"]
    waits = " / ".join(_number(latency.get(name)) for name in ("p50", "p95", "p99"))
    return (
        entry["scenario"],
        entry["program"],
        entry["result"],
        "" if target is None else f"{target['text']}: {'kept' if target['kept'] else '**missed**'}",
        ", ".join(f"{api} {count / seconds:.2f}" for api, count in sorted(entry["calls"].items())),
        ", ".join(f"{api} {count}" for api, count in sorted(entry["throttled"].items())) or "0",
        _number(entry["rss_mib"], 0),
        _percent(entry["cpu"]),
        _percent(entry["simulator_cpu"]),
        waits if entry["lines"] else "",
        f"{entry['lines']:,}" if entry["lines"] else "",
        f"{entry['lost']} / {entry['doubled']}" if entry["lines"] else "",
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
