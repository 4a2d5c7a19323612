"""What a virtual container prints, by formula: line n has its time, nothing is kept a line.

CloudWatch's agent hands lines over in batches. Here a container's batches come once in `PUT_EVERY` ms, each container
at a moment of its own within that time; a line's ingestion time is that of the first batch after it."""

from __future__ import annotations

from dataclasses import dataclass

PUT_EVERY = 1000
"""Milliseconds between two PutLogEvents of a container."""
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of even printing: line k of it comes k * 1e6 // `per_1000s` ms after `start`."""

    start: int
    """ms since the epoch."""
    per_1000s: int
    """Lines in 1,000 seconds; whole, so that counting and timing agree exactly."""
    first: int
    """Number of its first line."""
    most: int
    """Lines it has at most."""

    def count(self, until: int) -> int:
        """Lines printed at or before `until` (ms)."""
        passed = until - self.start
        if passed < 0:
            return 0
        return min(self.most, -(-(passed + 1) * self.per_1000s // _MICRO))

    def time(self, number: int) -> int:
        """When line `number` (of the container, not of the phase) is printed, ms."""
        return self.start + (number - self.first) * _MICRO // self.per_1000s


class Printer:
    """The output of one container: phases, one after the other. Lines are numbered from 0."""

    def __init__(self, shift: int) -> None:
        """`shift`: where in `PUT_EVERY` its batches fall, ms."""
        self._shift = shift % PUT_EVERY
        self._phases: list[Phase] = []

    def print_from(self, start: int, per_second: float, most: int | None = None) -> None:
        """From `start` (ms) on print `per_second` lines a second, `most` in all; what went on before ends there."""
        if self._phases:
            last = self._phases[-1]
            self._phases[-1] = Phase(last.start, last.per_1000s, last.first, last.count(start - 1))
        per_1000s = round(per_second * 1000)
        if per_1000s > 0:
            first = self.count(start - 1)
            self._phases.append(Phase(start, per_1000s, first, 1 << 62 if most is None else most))

    def count(self, until: int) -> int:
        """Lines printed at or before `until` (ms)."""
        return sum(phase.count(until) for phase in self._phases)

    def ingested(self, printed: int) -> int:
        """When CloudWatch gets a line that is printed then, ms."""
        return ((printed - self._shift) // PUT_EVERY + 1) * PUT_EVERY + self._shift

    def seen_until(self, now: int) -> int:
        """The newest time (ms) of lines that CloudWatch has by `now`."""
        return (now - self._shift) // PUT_EVERY * PUT_EVERY + self._shift - 1

    def times(self, first: int, end: int) -> list[tuple[int, int]]:
        """(number, time) of the lines from `first` to before `end`."""
        found: list[tuple[int, int]] = []
        for phase in self._phases:
            start = max(first, phase.first)
            stop = min(end, phase.first + phase.most)
            found += [(number, phase.time(number)) for number in range(start, stop)]
        return found
