"""`python -m tests.chaos`: see `make chaos` and docs/reliability.md."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Annotated, Literal

import typer
from rich.console import Console

from tests.chaos.plan import DEFAULTS, ExecutorKind, LedgerKind, Options
from tests.chaos.report import as_json, print_table, summary, violation_lines
from tests.chaos.run import run
from tests.conftest import ENVIRON, isolate_environment

Ledgers = Literal["sqlite", "dynamodb", "both"]
_SECONDS = "Mean seconds between two; 0: none."


def main(
    *,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same launches and faults.")
    ] = DEFAULTS.seed,
    workers: Annotated[int, typer.Option(min=1)] = DEFAULTS.workers,
    launches: Annotated[
        int, typer.Option(min=1, help="That become jobs; one in 25 more is sent that must be refused.")
    ] = DEFAULTS.launches,
    ledger: Annotated[Ledgers, typer.Option(help="`both`: one after the other.")] = "both",
    executor: Annotated[
        ExecutorKind, typer.Option(help="What runs the training jobs; `process` needs no docker.")
    ] = DEFAULTS.executor,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Faults and launches come for this long, for each ledger.")
    ] = DEFAULTS.minutes,
    drain_minutes: Annotated[
        float, typer.Option(help="Longest time that whole workers get afterwards to finish everything.")
    ] = DEFAULTS.drain_minutes,
    kill_every: Annotated[float, typer.Option(min=0, help=f"kill -9. {_SECONDS}")] = DEFAULTS.kill_every,
    freeze_every: Annotated[float, typer.Option(min=0, help=f"SIGSTOP. {_SECONDS}")] = DEFAULTS.freeze_every,
    terminate_every: Annotated[
        float, typer.Option(min=0, help=f"SIGTERM. {_SECONDS}")
    ] = DEFAULTS.terminate_every,
    fault_every: Annotated[
        float, typer.Option(min=0, help=f"Faults of AWS and W&B. {_SECONDS}")
    ] = DEFAULTS.fault_every,
    as_json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Kill, freeze and starve workers while launches come in; then audit from outside that nothing is lost or doubled.

    Exit code 1 when anything is wrong."""
    options = Options(
        seed=seed,
        workers=workers,
        launches=launches,
        executor=executor,
        minutes=minutes,
        drain_minutes=drain_minutes,
        kill_every=kill_every,
        freeze_every=freeze_every,
        terminate_every=terminate_every,
        fault_every=fault_every,
    )
    isolate_environment(ENVIRON)
    chosen: tuple[LedgerKind, ...] = ("sqlite", "dynamodb") if ledger == "both" else (ledger,)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    outcomes = []
    for kind in chosen:
        errors.print(
            f"chaos: {kind}, seed {seed}: {launches} launches, {workers} workers, {minutes:g} min of faults"
        )
        outcome = asyncio.run(run(replace(options, ledger=kind), lambda line: errors.print(f"  {line}")))
        errors.print(f"  {summary(outcome)}")
        outcomes.append(outcome)
    if as_json_:
        sys.stdout.write(json.dumps(as_json(outcomes), indent=2) + "\n")
    else:
        print_table(outcomes, Console())
    for outcome in outcomes:
        for line in violation_lines(outcome):
            errors.print(line)
    if any(outcome.finding.violations for outcome in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
