"""What SageMaker says about a quota that is used up, and who of those that wait may ask again: pure.

ResourceLimitExceeded comes with one sentence: The account-level service limit 'ml.g5.xlarge for training job usage'
is 1 Instances, with current utilization of 1 Instances and a request delta of 1 Instances.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_SENTENCE = re.compile(
    rf"service limit (?:for )?'?([^']+?)'? is {_NUMBER}\b.*?utilization of {_NUMBER}\b.*?request delta of {_NUMBER}\b",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Quota:
    """A quota as a refusal names it; numbers are instances, mostly."""

    name: str
    limit: float
    used: float
    wanted: float

    @property
    def is_too_small(self) -> bool:
        """The request does not fit even when nothing else runs."""
        return self.limit < self.wanted


def quota_of(message: str) -> Quota | None:
    """The quota in ResourceLimitExceeded's message; None for wording that is not known."""
    found = _SENTENCE.search(message)
    if found is None:
        return None
    name, *numbers = found.groups()
    limit, used, wanted = (float(number.replace(",", "")) for number in numbers)
    return Quota(name, limit, used, wanted)


_WAITS_FOR_QUOTA = "quota "


def waits_for(quota: Quota | None) -> str:
    """What launches wait for while a quota is used up: the same text as long as the quota is the same."""
    return _WAITS_FOR_QUOTA + (f"{quota.name!r} of {quota.limit:g} is used up" if quota else "is used up")


def is_quota(reason: str) -> bool:
    """The reason is one of `waits_for`."""
    return reason.startswith(_WAITS_FOR_QUOTA)


@dataclass(slots=True)
class _Line:
    """Those that wait for one kind of machine. Times are epoch seconds."""

    reason: str
    tries: int
    next_at: float
    running: int
    """Jobs of this kind that this worker has, as far as was observed."""


@dataclass(slots=True)
class WaitingLines:
    """One line a kind of machine for which there is no room: only its oldest launch asks again, at its time.

    CreateTrainingJob is allowed once a second: a hundred launches that wait for one machine must not use that up."""

    pause: Callable[[int], float]
    """Seconds before the next try, after so many that were refused."""
    _lines: dict[str, _Line] = field(default_factory=dict)

    def reason(self, kind: str) -> str:
        """Why launches of this kind wait; empty: nothing is known against them."""
        return self._lines[kind].reason if kind in self._lines else ""

    def refused(self, kind: str, reason: str, now: float) -> None:
        """There was no room: the next try is later than the last one was."""
        line = self._lines.get(kind)
        tries = line.tries + 1 if line else 0
        self._lines[kind] = _Line(reason, tries, now + self.pause(tries), line.running if line else 0)

    def remember(self, kind: str, reason: str, now: float) -> None:
        """A launch that was taken over had been refused elsewhere: its line begins with a try at once."""
        self._lines.setdefault(kind, _Line(reason, 0, now, 0))

    def admitted(self, kind: str, now: float) -> None:
        """One got in: there may be room for the next one, too."""
        if kind in self._lines:
            self._lines[kind].tries, self._lines[kind].next_at = 0, now

    def observe(self, running: Mapping[str, int], waiting: Iterable[str], now: float) -> None:
        """A job of a kind that has ended leaves room; a line in which nobody waits is closed."""
        self._lines = {kind: self._lines[kind] for kind in set(waiting) if kind in self._lines}
        for kind, line in self._lines.items():
            count = running.get(kind, 0)
            if count < line.running:
                line.next_at = min(line.next_at, now)
            line.running = count

    def may_ask(self, kind: str, now: float) -> bool:
        """The first in line may try now."""
        return kind not in self._lines or self._lines[kind].next_at <= now
