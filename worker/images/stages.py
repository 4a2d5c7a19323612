"""What a Dockerfile builds on: the images that have to be there, and may have to be pulled, before it is built. Pure.

Rules: Docker's "Dockerfile reference", sections on parser directives, ARG before FROM, multi-stage builds and
here-documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(.*?)\s*")
_HEREDOC = re.compile(r"<<(-?)(['\"]?)(\w+)\2")
_ARG = re.compile(r"(\w+)(?:=(\"[^\"]*\"|'[^']*'|\S*))?")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\})")
_COPY_FROM = re.compile(r"--from=(\S+)")
_MOUNT_FROM = re.compile(r"--mount=\S*?\bfrom=([^,\s]+)")


def external_images(dockerfile: str) -> tuple[str, ...]:
    """The images named by FROM, `COPY --from` and `RUN --mount=from`, each once, in order.

    Left out are `scratch`, the file's own stages, and what only the build itself can know (a variable without a
    default)."""
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    images: dict[str, None] = {}
    for word, rest in _instructions(dockerfile):
        if word == "ARG":
            if not stages:  # later ones are not visible to FROM
                arguments.update(_defaults(rest, arguments))
            continue
        for image in _named_images(word, rest, arguments):
            if image and "$" not in image and image.lower() not in stages | {"scratch"}:
                images.setdefault(image)
        if word == "FROM":
            stages |= _stage_names(rest, stages)
    return tuple(images)


def _named_images(word: str, rest: str, arguments: Mapping[str, str]) -> list[str]:
    if word == "FROM":
        words = _without_flags(rest)
        return [substitute(words[0].strip("\"'"), arguments)] if words else []
    if word in ("COPY", "ADD"):
        return _COPY_FROM.findall(rest)
    return _MOUNT_FROM.findall(rest) if word == "RUN" else []


def _stage_names(rest: str, earlier: set[str]) -> set[str]:
    """By what `COPY --from` may call the stage that a FROM begins: its number, and its name if it has one."""
    words = _without_flags(rest)
    number = str(sum(name.isdigit() for name in earlier))
    named = len(words) > 2 and words[1].upper() == "AS"
    return {number, words[2].lower()} if named else {number}


def _without_flags(rest: str) -> list[str]:
    return [word for word in rest.split() if not word.startswith("--")]


def _defaults(rest: str, known: Mapping[str, str]) -> dict[str, str]:
    """The values of `ARG A=1 B`; one without a default has none."""
    found: dict[str, str] = {}
    for name, value in _ARG.findall(rest):
        if value:
            found[name] = substitute(value.strip("\"'"), {**known, **found})
    return found


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`$A`, `${A}`, `${A:-default}`, `${A:+other}`; a variable nobody knows stays as it is written."""

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
    escape, in_head, joined = "\\", True, ""
    for line in lines:
        stripped = line.strip()
        if in_head:
            directive = _DIRECTIVE.fullmatch(stripped)
            if directive and directive[1].lower() == "escape" and directive[2] in ("\\", "`"):
                escape = directive[2]
            in_head = directive is not None
        if stripped.startswith("#") or (not stripped and joined):
            continue
        joined += line.rstrip()
        if joined.endswith(escape):
            joined = f"{joined[:-1]} "
            continue
        word, _, rest = joined.strip().partition(" ")
        joined = ""
        if word:
            yield word.upper(), rest.strip()
        if word.upper() in ("RUN", "COPY", "ADD"):
            for dash, _, end in _HEREDOC.findall(rest):
                _skip_heredoc(lines, end, tabs=bool(dash))
    if joined.strip():
        word, _, rest = joined.strip().partition(" ")
        yield word.upper(), rest.strip()


def _skip_heredoc(lines: Iterator[str], end: str, *, tabs: bool) -> None:
    for line in lines:
        if (line.lstrip("\t") if tabs else line) == end:
            return
