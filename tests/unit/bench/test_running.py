"""Quiet jobs are measured once they are at rest; memory is judged whatever running jobs do."""

from __future__ import annotations

from bench.scenarios.running import SILENCE, memory_judged
from worker.settings import Settings


def test_quiet_jobs_send_their_heartbeats_while_they_are_measured() -> None:
    assert Settings.model_fields["companion_heartbeat"].default < SILENCE


def test_memory_is_judged_where_a_goal_is_about_so_many_jobs() -> None:
    assert [judged.kept for count in (1000, 5000, 200) for judged in memory_judged(count, 300.0)] == [
        False,
        True,
    ]
