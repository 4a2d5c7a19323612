"""Trouble that is one launch's own: it is told, and ends nobody else's work."""

from __future__ import annotations

from types import TracebackType

from worker.errors import MustRestart
from worker.ops.logging import get_logger

_log = get_logger()


class RiddenOut:
    """`with RiddenOut("event")`: what fails inside, also in a way nobody foresaw, is logged as this warning and is over
    with the block; only `MustRestart` goes on."""

    def __init__(self, event: str, **fields: object) -> None:
        self._event = event
        self._fields = fields

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, MustRestart):
            return False
        _log.warning(self._event, **self._fields, error=str(error) or type(error).__name__)
        return True
