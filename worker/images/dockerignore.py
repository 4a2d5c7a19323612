"""`.dockerignore` with Docker's own meaning: pure.

Docker's patterns are not gitignore's: they are anchored at the context's root, a leading slash means nothing, and
`*.py` does not reach into folders. The rules are those of moby's `patternmatcher` (the library behind docker build
and BuildKit) and of Docker's documentation, "Build context: .dockerignore files".
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from worker.errors import Never, Stage

_WILD = frozenset("*?[\\")


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    exception: bool
    """It began with `!`: what it matches is sent after all."""
    regex: re.Pattern[str]
    """Matches a path, and everything beneath a path, that the pattern means."""

    def may_match_beneath(self, folder: str) -> bool:
        """Some path beneath `folder` could match."""
        literal: list[str] = []
        for part in self.text.split("/"):
            if _WILD.intersection(part):
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
            if pattern.exception is ignored and pattern.regex.fullmatch(path):
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
            regex = re.compile(f"(?:{_translate(cleaned)})(?:/.*)?", re.DOTALL)
        except (re.error, ValueError) as error:
            raise _refused(number, line, str(error)) from error
        found.append(_Pattern(cleaned, exception, regex))
    return found


def _refused(number: int, line: str, why: str) -> Never:
    return Never(
        f".dockerignore line {number}, {line.strip()!r}: {why}; correct the pattern",
        code="LW-DOCKERIGNORE",
        stage=Stage.BUILD,
    )


def _translate(pattern: str) -> str:
    """A cleaned pattern as a regular expression, by the rules of Go's filepath.Match and Docker's `**`."""
    if pattern.startswith("**") and not _WILD.intersection(pattern[2:]):
        # Docker takes `**TEXT` for "ends in TEXT", also in the middle of a name.
        rest = pattern[2:]
        return f"(?:.*/)?{re.escape(rest[1:])}" if rest.startswith("/") else f".*{re.escape(rest)}"
    out, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**", at):
            at += 3 if pattern.startswith("**/", at) else 2
            out.append("(?:.*/)?" if at < len(pattern) else ".*")
            continue
        if char == "[":
            group, at = _character_class(pattern, at)
            out.append(group)
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            out.append(re.escape(pattern[at]))
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char))
        at += 1
    return "".join(out)


def _character_class(pattern: str, start: int) -> tuple[str, int]:
    """`[a-z]`, `[^a-z]`; returns it as a regular expression and where it ends. `!` has no meaning of its own."""
    at = start + 1
    negated = pattern.startswith("^", at)
    at += negated
    members: list[str] = []
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < len(pattern):
            at += 1
            members.append(re.escape(pattern[at]))
        elif pattern[at] == "-":
            members.append("-")
        else:
            members.append(re.escape(pattern[at]))
        at += 1
    if at >= len(pattern) or not members:
        raise ValueError("a [ is never closed, or holds nothing")
    return f"[{'^' if negated else ''}{''.join(members)}]", at + 1
