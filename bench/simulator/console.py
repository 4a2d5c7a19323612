"""Checks one run's console from outside: each line of each container once, in order, without a hole.

A virtual line carries its number and its ingestion time (`seq=17 put=1700000000123 …`), so nothing has to be kept a
line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.simulator.latency import Latency

_LINE = re.compile(r'"label": ?"([^"]*)".*?seq=(\d+) put=(\d+)')
_PLAIN = re.compile(r"\[([^\]]*)\].*?seq=(\d+) put=(\d+)")
_REMEMBERED = 4
"""Posts whose text is remembered, to tell a repeated post from an overwriting one."""


@dataclass(slots=True)
class Container:
    """The lines of one container."""

    following: int = 0
    """Number of the line that is to come next."""
    missing: set[int] = field(default_factory=set)
    """Lines that were jumped over and have not come since."""
    doubled: int = 0

    def take(self, number: int) -> None:
        """The next line of the console that is this container's."""
        if number == self.following:
            self.following = number + 1
        elif number > self.following:
            self.missing.update(range(self.following, number))
            self.following = number + 1
        elif number in self.missing:
            self.missing.discard(number)
        else:
            self.doubled += 1


@dataclass(slots=True)
class Console:
    """One run's `output.log` as a server sees it."""

    length: int = 0
    holes: int = 0
    """Lines between the end of the console and a post that began behind it."""
    overwritten: int = 0
    """Posts that put another text over lines that stood already."""
    repeated: int = 0
    """Posts that said the same again: harmless."""
    foreign: int = 0
    """Lines that no virtual job has printed."""
    containers: dict[str, Container] = field(default_factory=dict)
    last_ingested: int = 0
    _posts: dict[int, int] = field(default_factory=dict)

    def post(self, offset: int, lines: Sequence[str], now: int, latency: Latency) -> int:
        """Take a post; returns how many of its lines are new."""
        digest = hash(tuple(lines))
        if offset < self.length:
            if self._posts.get(offset) == digest:
                self.repeated += 1
            else:
                self.overwritten += 1
            return 0
        self.holes += offset - self.length
        self.length = offset + len(lines)
        self._posts[offset] = digest
        if len(self._posts) > _REMEMBERED:
            del self._posts[next(iter(self._posts))]
        for line in lines:
            self._take(line, now, latency)
        return len(lines)

    def _take(self, line: str, now: int, latency: Latency) -> None:
        match = _LINE.search(line) or _PLAIN.search(line)
        if match is None:
            self.foreign += 1
            return
        label, number, ingested = match[1], int(match[2]), int(match[3])
        container = self.containers.get(label)
        if container is None:
            container = self.containers[label] = Container()
        container.take(number)
        self.last_ingested = ingested
        latency.add(now - ingested)

    @property
    def missing(self) -> int:
        """Lines that were jumped over."""
        return sum(len(container.missing) for container in self.containers.values())

    @property
    def doubled(self) -> int:
        """Lines that came again at another place."""
        return sum(container.doubled for container in self.containers.values())
