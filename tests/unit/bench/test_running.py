"""Quiet jobs are measured once they are at rest."""

from __future__ import annotations

from bench.scenarios.running import SILENCE
from worker.settings import Settings


def test_quiet_jobs_send_their_heartbeats_while_they_are_measured() -> None:
    assert Settings.model_fields["companion_heartbeat"].default < SILENCE
