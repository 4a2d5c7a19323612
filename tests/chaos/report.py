"""The table of a run for people, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from tests.chaos.plan import Kind
from tests.chaos.run import Outcome

_WORKERS: tuple[Kind, ...] = ("kill -9", "SIGSTOP", "SIGTERM")
_SHOWN = 40
"""Violations that are printed of one run; JSON has all of them."""


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of it."""
    return {"ok": all(not o.finding.violations for o in outcomes), "runs": [_run(o) for o in outcomes]}


def _run(outcome: Outcome) -> dict[str, Any]:
    options, finding = outcome.options, outcome.finding
    return {
        "ledger": options.ledger,
        "seed": options.seed,
        "workers": options.workers,
        "executor": options.executor,
        "launches": options.launches,
        "refusals_wanted": outcome.refusals_wanted,
        "messages": outcome.messages,
        "kills": outcome.faults.get("kill -9", 0),
        "freezes": outcome.faults.get("SIGSTOP", 0),
        "faults": {kind: outcome.faults.get(kind, 0) for kind in get_args(Kind)},
        "failed_starts": outcome.failed_starts,
        "jobs": finding.jobs,
        "refusals": finding.refusals,
        "lines_printed": finding.printed,
        "lines_in_wandb": finding.in_wandb,
        "lost": finding.count("lost"),
        "doubled": finding.count("doubled"),
        "out_of_order": finding.count("out of order"),
        "left_over": finding.count("left over"),
        "wrong": finding.count("wrong"),
        "seconds": round(outcome.seconds, 1),
        "violations": [
            {"sort": v.sort, "where": v.where, "what": v.what, "count": v.count} for v in finding.violations
        ],
        "command": options.command,
        "folder": outcome.folder,
    }


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """One column a run."""
    table = Table(title="chaos", title_justify="left")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(f"{outcome.options.ledger}, seed {outcome.options.seed}", justify="right")
    runs = [_run(outcome) for outcome in outcomes]
    for label, key in (("launches", "launches"), ("messages", "messages")):
        table.add_row(label, *(str(run[key]) for run in runs))
    table.add_section()
    for kind in get_args(Kind):
        if any(run["faults"][kind] for run in runs):
            unit = "" if kind in _WORKERS or kind == "late log events" else " (requests)"
            table.add_row(f"{kind}{unit}", *(str(run["faults"][kind]) for run in runs))
    table.add_section()
    table.add_row("jobs", *(f"{run['jobs']} of {run['launches']}" for run in runs))
    table.add_row("refusals", *(f"{run['refusals']} of {run['refusals_wanted']}" for run in runs))
    table.add_row("lines printed", *(str(run["lines_printed"]) for run in runs))
    table.add_row("lines in W&B", *(str(run["lines_in_wandb"]) for run in runs))
    table.add_section()
    for label in ("lost", "doubled", "out of order", "left over", "wrong"):
        key = label.replace(" ", "_")
        cells = (f"[bold red]{run[key]}[/]" if run[key] else "[green]0[/]" for run in runs)
        table.add_row(label, *cells)
    table.add_section()
    table.add_row("starts given up", *(str(run["failed_starts"]) for run in runs))
    table.add_row("duration", *(f"{run['seconds']:.0f} s" for run in runs))
    console.print(table)


def summary(outcome: Outcome) -> str:
    """One line."""
    finding = outcome.finding
    return (
        f"{finding.jobs} jobs, {finding.refusals} refusals, {finding.in_wandb} of {finding.printed} lines;"
        f" lost {finding.count('lost')}, doubled {finding.count('doubled')},"
        f" {len(finding.violations)} violations"
    )


def violation_lines(outcome: Outcome) -> list[str]:
    """One line for each violation, and how to make it happen again."""
    violations = outcome.finding.violations
    if not violations:
        return []
    again = f"[seed {outcome.options.seed}, {outcome.options.ledger}]"
    lines = [f"{v.sort}: {v.where}: {v.what}  {again}" for v in violations[:_SHOWN]]
    if len(violations) > _SHOWN:
        lines.append(f"… and {len(violations) - _SHOWN} more (--json has all)")
    return [*lines, f"again: {outcome.options.command}", f"logs of stack and workers: {outcome.folder}"]
