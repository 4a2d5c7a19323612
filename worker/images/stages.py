"""What a Dockerfile builds on: the images that have to be there, and may have to be pulled, before it is built. Pure.

Rules: Docker's "Dockerfile reference", sections on parser directives, ARG before FROM, multi-stage builds and
here-documents.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping

# The text is a submitter's, up to 1 MiB: no pattern may begin again and again what it cannot end.
_WORD = re.compile(r"\w+")
_HEREDOC = re.compile(r"<<(-?)(['\"]?)(\w+)\2")
_ARG = re.compile(r"(\w+)(?:=(\"[^\"]*\"|'[^']*'|\S*))?")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\})")
_COPY_FROM = re.compile(r"--from=(\S+)")
_FROM = re.compile(r"\bfrom=([^,\s]+)")
_LONGEST = 4096
"""Characters of a value that may be part of an image's name, which has fewer: values may hold each other."""


def external_images(dockerfile: str) -> tuple[str, ...]:
    """The images named by FROM, `COPY --from` and `RUN --mount=from`, each once, in order.

    Left out are `scratch`, the file's own stages, and what only the build itself can know (a variable without a
    default)."""
    arguments: dict[str, str] = {}
    stages, count = {"scratch"}, 0
    images: dict[str, None] = {}
    for word, rest in _instructions(dockerfile):
        if word == "ARG":
            if not count:  # later ones are not visible to FROM
                arguments.update(_defaults(rest, arguments))
            continue
        for image in _named_images(word, rest, arguments):
            if image and "$" not in image and image.lower() not in stages:
                images.setdefault(image)
        if word == "FROM":
            stages |= _stage_names(rest, count)
            count += 1
    return tuple(images)


def _named_images(word: str, rest: str, arguments: Mapping[str, str]) -> list[str]:
    if word == "FROM":
        words = _without_flags(rest)
        return [substitute(words[0].strip("\"'"), arguments)] if words else []
    if word in ("COPY", "ADD"):
        return _COPY_FROM.findall(rest)
    return _mounted(rest) if word == "RUN" else []


def _mounted(rest: str) -> list[str]:
    """The images of `--mount=type=bind,from=IMAGE,…`."""
    options = (word.partition("--mount=")[2] for word in rest.split())
    return [match[1] for option in options if (match := _FROM.search(option))]


def _stage_names(rest: str, number: int) -> set[str]:
    """By what `COPY --from` may call the stage that a FROM begins: its number, and its name if it has one."""
    words = _without_flags(rest)
    named = len(words) > 2 and words[1].upper() == "AS"
    return {str(number), words[2].lower()} if named else {str(number)}


def _without_flags(rest: str) -> list[str]:
    return [word for word in rest.split() if not word.startswith("--")]


def _defaults(rest: str, known: dict[str, str]) -> dict[str, str]:
    """The values of `ARG A=1 B`; one without a default has none."""
    found: dict[str, str] = {}
    visible = ChainMap(found, known)
    for name, value in _ARG.findall(rest):
        if value and len(meant := substitute(value.strip("\"'"), visible)) <= _LONGEST:
            found[name] = meant
    return found


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`$A`, `${A}`, `${A:-default}`, `${A:+other}`; a variable nobody knows stays as it is written, and so
    does a text that is too long for an image's name."""
    if len(text) > _LONGEST:
        return text

    def value(match: re.Match[str]) -> str:
        name, operator, other = match[1] or match[2], match[3] or "", match[4] or ""
        known = values.get(name)
        is_set = bool(known) if operator.startswith(":") else known is not None
        if operator.endswith("-"):
            return known or "" if is_set else other
        if operator.endswith("+"):
            return other if is_set else ""
        return match[0] if known is None else known

    return _VARIABLE.sub(value, text)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, arguments) with continued lines joined; comments and here-documents are left out."""
    lines = iter(text.removeprefix("\ufeff").splitlines())
    escape, in_head, parts = "\\", True, list[str]()
    for line in lines:
        stripped = line.strip()
        if in_head:
            name, equals, value = (part.strip() for part in stripped.removeprefix("#").partition("="))
            in_head = bool(stripped.startswith("#") and equals and _WORD.fullmatch(name))
            if in_head and name.lower() == "escape" and value in ("\\", "`"):
                escape = value
        if stripped.startswith("#") or (not stripped and parts):
            continue
        ended = line.rstrip()
        if ended.endswith(escape):
            parts.append(f"{ended[:-1]} ")
            continue
        word, _, rest = "".join([*parts, ended]).strip().partition(" ")
        parts = []
        if word:
            yield word.upper(), rest.strip()
        if word.upper() in ("RUN", "COPY", "ADD"):
            for dash, _, end in _HEREDOC.findall(rest):
                _skip_heredoc(lines, end, tabs=bool(dash))
    if joined := "".join(parts).strip():
        word, _, rest = joined.partition(" ")
        yield word.upper(), rest.strip()


def _skip_heredoc(lines: Iterator[str], end: str, *, tabs: bool) -> None:
    for line in lines:
        if (line.lstrip("\t") if tabs else line) == end:
            return
