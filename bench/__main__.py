"""`python -m bench`: run scenarios, write their numbers, make the page of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.catalogue import SCENARIOS, Scenario
from bench.machine import Clock, machine
from bench.measurement import Measurement
from bench.programs import SIMULATOR_CORE, pin
from bench.report import tables, write_page
from bench.stage import Stage, open_stage

app = typer.Typer(help="Benchmarks of launch-worker and of W&B's agent.", no_args_is_help=True)
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WHOLE = RESULTS / "latest.json"
"""Of the last run of everything in full."""
_NAMES = ", ".join(scenario.name for scenario in SCENARIOS)


@app.command("list")
def list_scenarios() -> None:
    """What there is to run."""
    for scenario in SCENARIOS:
        typer.echo(f"{scenario.name:12} {scenario.what}")


@app.command()
def run(
    only: Annotated[list[str] | None, typer.Argument(help=f"Scenarios; all by default: {_NAMES}.")] = None,
    short: Annotated[bool, typer.Option("--short", help="Smaller numbers, to see that all works.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Scenarios to leave out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the numbers go, as JSON. Default: bench/results/latest.json, or partial.json of less than all."
        ),
    ] = None,
) -> None:
    """Run scenarios one after the other, and show the tables. A run of all of them in full also writes the page."""
    unknown = {*(only or ()), *(skip or ())} - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise typer.BadParameter(f"no such scenario: {', '.join(sorted(unknown))}; there are {_NAMES}")
    chosen = [s for s in SCENARIOS if (not only or s.name in only) and s.name not in (skip or ())]
    results = asyncio.run(_run(chosen, short=short))
    whole = len(chosen) == len(SCENARIOS) and not short
    out = out or (WHOLE if whole else RESULTS / "partial.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    typer.echo(f"\n{tables(results)}\n\nwritten to {out}")
    if whole:
        page(out)
    if any("failed" in entry for entry in results["scenarios"]):
        raise typer.Exit(1)


@app.command()
def page(
    numbers: Annotated[Path, typer.Argument(help="What `run` has written.")] = WHOLE,
) -> None:
    """Put the table and the plots of a run into docs/benchmarks.md (needs the extra `bench`)."""
    from bench.plots import draw  # matplotlib is in the extra `bench`

    write_page(json.loads(numbers.read_text()), ROOT / "docs", draw=draw)
    typer.echo("docs/benchmarks.md has them")


async def _run(scenarios: list[Scenario], *, short: bool) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": machine(),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "short": short,
        "scenarios": [],
    }
    pin(os.getpid(), SIMULATOR_CORE)
    with tempfile.TemporaryDirectory(prefix="launch-bench-", ignore_cleanup_errors=True) as folder:
        async with open_stage(Path(folder)) as stage:
            for scenario in scenarios:
                results["scenarios"].append(await _one(stage, scenario, short=short))
    return results


async def _one(stage: Stage, scenario: Scenario, *, short: bool) -> dict[str, Any]:
    began, clock = time.monotonic(), Clock.now()
    entry: dict[str, Any] = {"name": scenario.name, "what": scenario.what, "measurements": []}
    try:
        found = await (scenario.short if short else scenario.full)(stage)
        entry["measurements"] = [asdict(measurement) for measurement in found]
        for measurement in found:
            _tell(measurement)
    except Exception as error:  # the others are to be measured all the same
        entry["failed"] = f"{type(error).__name__}: {error}"
        typer.echo(f"{scenario.name}: failed: {entry['failed']}")
    entry["seconds"] = time.monotonic() - began
    entry["busy_cores"] = round(clock.busy_cores_until(Clock.now()), 2)
    return entry


def _tell(measurement: Measurement) -> None:
    missed = [judged.goal for judged in measurement.judged if judged.kept is False]
    mark = f"  MISSED: {', '.join(missed)}" if missed else ""
    typer.echo(f"{measurement.program:18} {measurement.scenario:34} {measurement.result}{mark}")


if __name__ == "__main__":
    app()
