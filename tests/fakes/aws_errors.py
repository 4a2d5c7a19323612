"""An error as AWS answers it, whatever carries it."""

from __future__ import annotations


class AwsError(Exception):
    """Answered as AWS answers errors: HTTP status, code, message."""

    def __init__(self, code: str, message: str = "made by a test", *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
