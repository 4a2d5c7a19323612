"""One pattern of a `.dockerignore` against paths, in time linear in the path whatever the pattern: pure.

A submitter chooses pattern and paths, so nothing here may backtrack. The pattern is a nondeterministic automaton whose
states are the bits of one integer (the "shift-and" way); a character of the path moves all of them at once. The rules
are those of Go's filepath.Match and of Docker's `**`.
"""

from __future__ import annotations

from collections.abc import Iterable

WILD = frozenset("*?[\\")


class PathMatcher:
    """A cleaned pattern. Matches a path that it means, and all that lies beneath such a path."""

    def __init__(self, pattern: str) -> None:
        """Raises `ValueError` for a character class that cannot be read."""
        self._plain = None if WILD.intersection(pattern) else pattern
        self._needed = ""
        if self._plain is None:
            self._compile(pattern)

    def _compile(self, pattern: str) -> None:
        tokens = _Tokens(pattern)
        self._needed = tokens.longest_literal
        self._literals = tokens.literals
        self._classes = tokens.classes
        self._any = _bits(tokens.any_character)
        self._folders = _bits(tokens.folders)
        self._loops = _bits(tokens.loops) | self._folders
        self._loops_in_name = self._loops | _bits(tokens.loops_in_name)
        self._final = 1 << tokens.states
        self._masks: dict[str, int] = {}

    def matches(self, path: str) -> bool:
        """`path`, or a folder above it, is meant."""
        if self._plain is not None:
            return path == self._plain or path.startswith(f"{self._plain}/")
        if self._needed not in path:
            return False  # what most paths end at
        states = 1 | (1 & self._folders) << 1
        for character in path:
            is_slash = character == "/"
            if is_slash and states & self._final:
                return True
            mask = self._masks.get(character)
            if mask is None:
                mask = self._masks[character] = self._mask(character)
            moved = (states & mask) << 1
            moved |= (moved & self._folders) << 1  # it may also stand for no folder at all
            states = moved | states & (self._loops if is_slash else self._loops_in_name)
            if not states:
                return False
        return bool(states & self._final)

    def _mask(self, character: str) -> int:
        """The states that `character` leads on from."""
        own = [state for state, members in self._classes if members.has(character)]
        found = _bits(own) | _bits(self._literals.get(character, ()))
        return found | (self._folders if character == "/" else self._any)


class _Tokens:
    """What a pattern consists of: state n is left by the n-th token, the last state is the end."""

    def __init__(self, pattern: str) -> None:
        self.states = 0
        self.literals: dict[str, list[int]] = {}
        self.classes: list[tuple[int, _Class]] = []
        self.any_character: list[int] = []
        """`?`: not a slash."""
        self.folders: list[int] = []
        """`**`: any number of whole folders; left by a slash."""
        self.loops: list[int] = []
        """Where anything may come in between."""
        self.loops_in_name: list[int] = []
        """`*`: where anything but a slash may come in between."""
        self.longest_literal = ""
        self._run: list[str] = []
        if pattern.startswith("**") and not WILD.intersection(pattern[2:]) and pattern[2:3] not in ("", "/"):
            # Docker takes `**TEXT` for "ends in TEXT", also in the middle of a name.
            self.loops.append(0)
            pattern = pattern[2:]
        at = 0
        while at < len(pattern):
            at = self._take(pattern, at)
        self._end_run()

    def _take(self, pattern: str, at: int) -> int:
        """Read one token; returns where the next one begins."""
        character = pattern[at]
        if character == "\\" and at + 1 < len(pattern):
            self._literal(pattern[at + 1])
            return at + 2
        if character not in "*?[":
            self._literal(character)
            return at + 1
        self._end_run()
        if pattern.startswith("**", at):
            at += 3 if pattern.startswith("**/", at) else 2
            if at >= len(pattern):
                self.loops.append(self.states)
            elif not self.folders or self.folders[-1] != self.states - 1:  # twice means the same
                self.folders.append(self._next())
            return at
        if character == "*":
            self.loops_in_name.append(self.states)
            return at + 1
        if character == "?":
            self.any_character.append(self._next())
            return at + 1
        members, at = _character_class(pattern, at)
        self.classes.append((self._next(), members))
        return at

    def _literal(self, character: str) -> None:
        self._run.append(character)
        self.literals.setdefault(character, []).append(self._next())

    def _end_run(self) -> None:
        if len(self._run) > len(self.longest_literal):
            self.longest_literal = "".join(self._run)
        self._run = []

    def _next(self) -> int:
        self.states += 1
        return self.states - 1


class _Class:
    """`[a-z]`, `[^a-z]`. `!` has no meaning of its own."""

    def __init__(self, ranges: list[tuple[str, str]], *, negated: bool) -> None:
        self._ranges = ranges
        self._negated = negated

    def has(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self._ranges) is not self._negated


def _character_class(pattern: str, start: int) -> tuple[_Class, int]:
    """The class that begins at `start`, and where it ends."""
    at = start + 1
    negated = pattern.startswith("^", at)
    at += negated
    members: list[tuple[str, bool]] = []  # and whether it is a dash that may mean a range
    while at < len(pattern) and pattern[at] != "]":
        escaped = pattern[at] == "\\" and at + 1 < len(pattern)
        at += escaped
        members.append((pattern[at], pattern[at] == "-" and not escaped))
        at += 1
    if at >= len(pattern) or not members:
        raise ValueError("a [ is never closed, or holds nothing")
    return _Class(_ranges(members), negated=negated), at + 1


def _ranges(members: list[tuple[str, bool]]) -> list[tuple[str, str]]:
    found, index = [], 0
    while index < len(members):
        low = high = members[index][0]
        if index + 2 < len(members) and members[index + 1][1]:
            high = members[index + 2][0]
            index += 2
        if low > high:
            raise ValueError(f"the range {low}-{high} is empty")
        found.append((low, high))
        index += 1
    return found


def _bits(positions: Iterable[int]) -> int:
    """An integer with these bits set, in linear time."""
    places = list(positions)
    raw = bytearray(max(places, default=-1) // 8 + 1)
    for place in places:
        raw[place // 8] |= 1 << place % 8
    return int.from_bytes(raw, "little")
