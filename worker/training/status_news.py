"""What is news about a job, and how often to ask for it: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from worker.launch.record import JobFacts, LaunchRecord, LaunchState
from worker.training.status import has_ended

_SOON, _LATER = 0.5, 2.0
_NOTHING_NEW = 300.0
"""Seconds without a change after which looks are rarer."""
_SAME_MOMENT = 1.0
"""Seconds by which LastModifiedTime may be behind the state's own StartTime: AWS tells whole seconds."""
_STEADY = frozenset({"Training"})
"""Secondary states that last; all others are passed through."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A job's state as ListTrainingJobs tells it."""

    name: str
    status: str
    secondary_status: str
    modified_at: float
    """Epoch seconds."""


def is_news(listed: Summary, known: JobFacts, looked_for: Summary | None) -> bool:
    """The job is to be described. `looked_for`: what was listed when that was done last.

    A list lags behind, and tells a change twice where two looks overlap: a secondary state that differs from what
    DescribeTrainingJob has answered since is old then. A status that differs is looked at each time, since an end that
    is missed would be missed for good."""
    if listed.status != known.status:
        return True
    if listed == looked_for:
        return False
    return listed.secondary_status != known.secondary_status or _came_back(listed, known)


def _came_back(listed: Summary, known: JobFacts) -> bool:
    """The job has left its state and come to it again, as after an interruption that was over between two looks."""
    return bool(known.transitions) and listed.modified_at > known.transitions[-1][1] + _SAME_MOMENT


def pace_of_looks(records: Iterable[LaunchRecord], unchanged: float) -> float:
    """What the pause between two looks is multiplied with: half while a job starts or is about to end, twice when
    nothing has changed for a while. `unchanged`: seconds since the last change."""
    running = [r for r in records if r.state is LaunchState.ACCEPTED and not has_ended(r.facts)]
    if any(r.stop_reason or r.facts.secondary_status not in _STEADY for r in running):
        return _SOON if unchanged < _NOTHING_NEW else 1.0
    return 1.0 if unchanged < _NOTHING_NEW else _LATER
