"""Which images a Dockerfile builds on."""

from __future__ import annotations

import pytest

from worker.images.stages import external_images, substitute


@pytest.mark.parametrize(
    ("dockerfile", "images"),
    [
        ("FROM python:3.11", ["python:3.11"]),
        ("# syntax=docker/dockerfile:1\nfrom a:1 as x\nFROM x\nFROM X AS y", ["a:1"]),
        ("FROM --platform=$BUILDPLATFORM a AS b", ["a"]),
        ("FROM scratch\nCOPY x y", []),
        ("ARG V=1\nARG I=base:${V}\nFROM $I\nFROM ${W:-w:2}", ["base:1", "w:2"]),
        ('ARG I="quoted:1" J=two\nFROM ${I}\nFROM $J', ["quoted:1", "two"]),
        ("ARG I\nFROM $I", []),
        ("FROM a\nARG I=b\nFROM $I", ["a"]),
        ("FROM a \\\n  # a comment\n\n  AS x\nFROM x", ["a"]),
        ("# escape=`\nFROM a `\n  AS x\nFROM x\nRUN dir C:\\", ["a"]),
        ("FROM a\nRUN <<EOF\nFROM b\nEOF\nFROM c", ["a", "c"]),
        ("FROM a\nRUN <<-'END' cat\nFROM b\n\tEND\nFROM c", ["a", "c"]),
        (
            "FROM a AS x\nFROM b\nCOPY --from=x / /\nCOPY --from=0 / /\nCOPY --from=tools:1 /t /t",
            ["a", "b", "tools:1"],
        ),
        ("FROM a\nRUN --mount=type=bind,from=uv:1,target=/uv --mount=type=cache,target=/c x", ["a", "uv:1"]),
        ("FROM a\nFROM a", ["a"]),
        ("FROM host:5000/x@sha256:" + "0" * 64, ["host:5000/x@sha256:" + "0" * 64]),
        ("FROM a\nRUN echo \\\n", ["a"]),
        ("FROM\nRUN x", []),
        ("", []),
    ],
)
def test_external_images(dockerfile: str, images: list[str]) -> None:
    assert list(external_images(dockerfile)) == images


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$A-$B", "1-$B"),
        ("${A}${E}", "1"),
        ("${B:-x}${B-y}", "xy"),
        ("${E:-x}|${E-y}", "x|"),
        ("${A:+set}|${E:+set}|${E+set}|${B+set}", "set||set|"),
        ("plain", "plain"),
    ],
)
def test_substitute(text: str, result: str) -> None:
    assert substitute(text, {"A": "1", "E": ""}) == result


_MIB = 1024 * 1024


@pytest.mark.parametrize(
    "unit",
    [
        "# a", "#\t ", "#" + " " * 1000, "#a" + " " * 1000, "RUN --mount=", "--mount=", "--mount=from", "\\\n",
        "ARG A=1\n", "ARG A=${A-$A$A$A}\n", "${A-", "${A:-$", "<<'a", "A=\"", "FROM a\n", "FROM a AS b\n", "COPY <<",
        "--from=",
    ],
)  # fmt: skip
@pytest.mark.parametrize("head", ["", "FROM ", "ARG A=1 ", "RUN ", "COPY "])
@pytest.mark.timeout(30)  # what is not in proportion takes hours
def test_time_is_bounded_by_the_size(head: str, unit: str) -> None:
    external_images(head + unit * (_MIB // len(unit)))


def test_values_that_hold_each_other_do_not_grow_without_end() -> None:
    lines = ["ARG A0=aaaaaaaaaa", *(f"ARG A{n}=$A{n - 1}$A{n - 1}$A{n - 1}$A{n - 1}" for n in range(1, 60))]
    assert external_images("\n".join([*lines, "FROM $A1", "FROM $A59"])) == ("a" * 40,)
