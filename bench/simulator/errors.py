"""How the simulator says no."""

from __future__ import annotations


class AwsError(Exception):
    """Answered as AWS's JSON services answer errors: HTTP 400 with a code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
