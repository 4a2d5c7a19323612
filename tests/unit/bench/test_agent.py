"""What is told of W&B's agent at sizes that it cannot reach here."""

from __future__ import annotations

from bench.scenarios.agent import at_jobs


def test_what_the_agent_uses_without_a_job_is_not_multiplied() -> None:
    assert at_jobs(1000, 10, idle=200.0, busy=300.0) == 200.0 + 1000 * 10.0
    assert at_jobs(10, 10, idle=0.2, busy=0.5) == 0.5
