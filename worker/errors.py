"""Every failure answers one question: again, or never?

WorkerError
├── Again               the same try may succeed later; `retry_after` seconds when the peer told us
│   ├── Throttled       the peer asked us to slow down; the rate of that API is lowered
│   └── Unreachable     no answer, or a 5xx: the effect may or may not have happened
├── Never               retrying is useless; carries stage, code and what to do
│   └── BadMessage      the launch message itself is wrong; carries every problem found
└── OwnershipLost       another worker holds this launch now: stop, write nothing, report nothing

Vendor errors are translated where the vendor is called (`clients/`) and never travel further up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The stage named in failRunQueueItem, as W&B's agent names them (wandb/sdk/launch/agent)."""

    AGENT = "agent"
    BUILD = "build"
    RUN = "run"


class WorkerError(Exception):
    """Base of all errors this package raises on purpose. `code` is stable (`LW-…`, docs/errors.md): commands name it,
    and a `Never` has one of its own, which goes along wherever a launch is told of."""

    code = "LW-FAILED"


class Again(WorkerError):
    """The try failed, a later one may succeed."""

    code = "LW-TRY-AGAIN"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Throttled(Again):
    """The service said: slow down."""

    code = "LW-THROTTLED"


class Unreachable(Again):
    """No answer, or a server-side failure. Whether the effect happened is unknown."""

    code = "LW-UNREACHABLE"


class Never(WorkerError):
    """No later try can succeed. The message says what is wrong and what to do about it.

    `code` is stable (`LW-…`) and goes with `stage` into W&B, the ledger and the dead-letter queue.
    """

    def __init__(self, message: str, *, code: str, stage: Stage = Stage.AGENT) -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a launch message: where (JSON path), what, and what to do."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


MAX_PROBLEMS = 100
"""Problems of one message that are told; who has mended those sends the message again."""
_MAX_LINE = 500


class BadMessage(Never):
    """The launch message is wrong. All problems are reported at once, as far as somebody can read them."""

    def __init__(self, problems: tuple[Problem, ...], *, code: str = "LW-BAD-MESSAGE") -> None:
        self.problems = problems[:MAX_PROBLEMS]
        super().__init__(
            "\n".join(shortened(str(problem), _MAX_LINE) for problem in self.problems), code=code
        )


def shortened(text: str, limit: int) -> str:
    """About `limit` characters of it: what is quoted may be of any length, and what to do stands at the end. Secrets
    have to be out of it already: half of one is not found any more."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


class OwnershipLost(WorkerError):
    """The ledger says another worker owns this launch."""


class MustRestart(Exception):
    """This process cannot do its work any more, and only a new one can. Nobody rides it out: it ends the process."""


class SettingsError(WorkerError):
    """A setting is missing or wrong; exit code 2."""

    code = "LW-SETTINGS"
