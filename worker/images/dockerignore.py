"""`.dockerignore` with Docker's own meaning: pure.

Docker's patterns are not gitignore's: they are anchored at the context's root, a leading slash means nothing, and
`*.py` does not reach into folders. The rules are those of moby's `patternmatcher` (the library behind docker build
and BuildKit) and of Docker's documentation, "Build context: .dockerignore files".
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from worker.errors import Never, Stage
from worker.images.ignore_matcher import WILD, PathMatcher

_LONGEST_LINE = 64 * 1024 - 1
"""Docker reads the file with Go's bufio.Scanner, which takes no longer line."""
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    exception: bool
    """It began with `!`: what it matches is sent after all."""
    matcher: PathMatcher
    """Matches a path, and everything beneath a path, that the pattern means."""

    def may_match_beneath(self, folder: str) -> bool:
        """Some path beneath `folder` could match."""
        literal: list[str] = []
        for part in self.text.split("/"):
            if WILD.intersection(part):
                # From here on anything may come; it lies beneath the literal part.
                head = "/".join(literal)
                return not head or _is_beneath(folder, head) or _is_beneath(head, folder)
            literal.append(part)
        return _is_beneath(self.text, folder)


class DockerIgnore:
    """The patterns of one file; an empty file ignores nothing."""

    def __init__(self, text: str) -> None:
        """Raises `Never` (LW-DOCKERIGNORE) for a pattern that Docker refuses too."""
        self._patterns = tuple(_patterns(text))

    def ignores(self, path: str) -> bool:
        """`path`, relative to the root and with `/`, is left out. The last pattern that matches decides."""
        ignored = False
        for pattern in self._patterns:
            if pattern.exception is ignored and pattern.matcher.matches(path):
                ignored = not pattern.exception
        return ignored

    def ignores_all_beneath(self, folder: str) -> bool:
        """An ignored folder in which no `!` pattern can save anything: it need not be looked into."""
        return not any(p.exception and p.may_match_beneath(folder) for p in self._patterns)


def _is_beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _patterns(text: str) -> list[_Pattern]:
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if len(line) > _LONGEST_LINE:
            raise _refused(number, line, f"longer than {_LONGEST_LINE} characters")
        if line.startswith("#"):  # only in the first column; Docker trims the line after this question
            continue
        stripped = line.strip()
        exception = stripped.startswith("!")
        given = stripped.removeprefix("!").strip()
        if not stripped:
            continue
        if not given:
            raise _refused(number, line, "an exception without a pattern")
        cleaned = posixpath.normpath(given)
        cleaned = "/" + cleaned.lstrip("/") if cleaned.startswith("/") else cleaned
        if len(cleaned) > 1:
            cleaned = cleaned.removeprefix("/")
        try:
            matcher = PathMatcher(cleaned)
        except ValueError as error:
            raise _refused(number, line, str(error)) from error
        found.append(_Pattern(cleaned, exception, matcher))
    return found


def _refused(number: int, line: str, why: str) -> Never:
    return Never(
        f".dockerignore line {number}, {line.strip()[:_SHOWN]!r}: {why}; correct the pattern",
        code="LW-DOCKERIGNORE",
        stage=Stage.BUILD,
    )
