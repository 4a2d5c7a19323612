"""The double in a strict mood: it refuses what a careful client never sends, and limits rates as W&B documents.

What the real server does with such posts cannot be seen from outside, so this takes the strictest plausible reading:
a refused post changes nothing, is answered with the status that W&B's own clients take for fatal, and is remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worker.local.wandb_records import CONSOLE, HISTORY, DoubleRun, Json, RunKey

CONSOLE_LINES = 100_000
"""Console lines that W&B keeps of a run (W&B documentation, limits)."""
_OWN_LINES = "wandb-core"
"""Its terminal emulation replaces lines that it has posted itself."""


@dataclass(frozen=True, slots=True)
class Strictness:
    """What is refused; nothing by default. Set it with `POST /_double/strict`, whose keys are these fields."""

    writers: bool = False
    """409 for a second kind of client in a run's console or history, a line over a different one, or one behind a
    gap. The same line at the same place is taken again."""
    console_lines: int = 0
    """400 for console lines beyond this number; 0: any number. W&B's is `CONSOLE_LINES`."""
    run_posts: float = 0.0
    """Posts a second of one run, beyond which the answer is 429; 0: any. W&B's is 2 (Dedicated Cloud)."""
    project_posts: float = 0.0
    """The same of a project. W&B's is 500."""
    queries: float = 0.0
    """The same of GraphQL operations."""
    revives: bool = False
    """Whatever is posted after the end of a run makes it running again, also a heartbeat: W&B's client avoids such
    posts since they "resurrect" the run (a comment in wandb/apis/public/runs.py, `Run.upload_file`)."""


STRICT = Strictness(
    writers=True, console_lines=CONSOLE_LINES, run_posts=2.0, project_posts=500.0, revives=True
)
"""W&B's documented limits, and nothing that could go wrong goes right."""


@dataclass(slots=True)
class Allowance:
    """A bucket of requests, of two seconds' size."""

    rate: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """Take one; returns the seconds until there is one, 0 if there was."""
        self.left = min(2 * self.rate, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0


@dataclass(slots=True)
class RateLimits:
    """Who has asked how often."""

    clock: Callable[[], float] = time.monotonic
    _allowances: dict[object, Allowance] = field(default_factory=dict)

    def of_post(self, strict: Strictness, key: RunKey) -> float:
        """Seconds for which a post has to wait; 0: it may pass."""
        return self._wait(key, strict.run_posts) or self._wait(key[:2], strict.project_posts)

    def of_query(self, strict: Strictness) -> float:
        """The same for a GraphQL operation."""
        return self._wait("graphql", strict.queries)

    def _wait(self, who: object, rate: float) -> float:
        if not rate:
            return 0.0
        now = self.clock()
        return self._allowances.setdefault(who, Allowance(rate, 2 * rate, now)).take(now)


def refusal(strict: Strictness, run: DoubleRun, writer: str, client: str, body: Json) -> tuple[int, str]:
    """(status, why) for a post that is refused; status 0: it is taken. `writer` as `writer_of` has it; `client`: the
    kind of client, from its User-Agent."""
    files: dict[str, Json] = body.get("files") or {}
    for name in (CONSOLE, HISTORY):
        chunk = files.get(name)
        if not chunk:
            continue
        behind = chunk["offset"] + len(chunk["content"])
        if name == CONSOLE and 0 < strict.console_lines < behind:
            return 400, f"{name}: {behind} lines, and {strict.console_lines} are kept"
        others = run.clients - {client}
        if strict.writers and others and not writer:  # in shared mode writers are kept apart
            return 409, f"{name}: {client} writes where {', '.join(sorted(others))} has written"
        stored = run.lines.get(writer, {}).get(name, {})
        may_replace = bool(writer) or client == _OWN_LINES
        if strict.writers and not may_replace and (why := _clash(stored, chunk)):
            return 409, f"{name}: {why}"
    return 0, ""


def _clash(stored: Mapping[int, str], chunk: Json) -> str:
    offset: int = chunk["offset"]
    if offset > len(stored):
        return f"a gap: line {offset} follows line {len(stored) - 1}"
    for number, line in enumerate(chunk["content"], offset):
        if stored.get(number, line) != line:
            return f"line {number} is {_short(stored[number])}, not {_short(line)}"
    return ""


def _short(line: str) -> str:
    return json.dumps(line)[:100]
