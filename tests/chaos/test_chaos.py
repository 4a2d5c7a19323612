"""The two-minute form of `make chaos`: both ledgers, all kinds of faults, and the same audit."""

from __future__ import annotations

import sys

import pytest

from tests.chaos.plan import LedgerKind, Options
from tests.chaos.report import violation_lines
from tests.chaos.run import run


def _say(line: str) -> None:
    """Shown by pytest when the test fails."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.timeout(600)  # a bound for a machine that is very busy; usually 50 s
@pytest.mark.parametrize("ledger", ["sqlite", "dynamodb"])
async def test_nothing_is_lost_or_doubled(ledger: LedgerKind) -> None:
    options = Options(
        seed=20261126, launches=20, ledger=ledger, minutes=0.35, fault_every=1.5, terminate_every=15
    )
    outcome = await run(options, _say)
    assert violation_lines(outcome) == []
    finding = outcome.finding
    assert (finding.jobs, finding.refusals) == (20, outcome.refusals_wanted)
    assert finding.printed == finding.in_wandb > 0
    assert outcome.faults["kill -9"] > 0
    assert outcome.faults["SIGSTOP"] > 0
    assert sum(outcome.faults.values()) > 20, "hardly anything happened"
