"""BuildKit's trace as dockerd sends it, and as lines."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.clients.buildkit_trace import TraceUnreadable, Vertex, VertexLog, decode_trace
from worker.clients.docker_output import BuildOutput, LineSplitter

# Recorded from dockerd 20.10.24: `RUN printf 'hi'; exit 7`.
STEP = "sha256:d0c5cba5a4fce31d6f985dfed0e78f1ffd54378463afe6799380c20a13a56b27"
LOG_AUX = (
    "GlwKR3NoYTI1NjpkMGM1Y2JhNWE0ZmNlMzFkNmY5ODVkZmVkMGU3OGYxZmZkNTQzNzg0NjNhZmU2Nzk5MzgwYzIwYTEzYTU2YjI3EgsI"
    "g5CT2AYQr+ihGBgBIgJoaQ=="
)
FAILED_AUX = (
    "CpQCCkdzaGEyNTY6ZDBjNWNiYTVhNGZjZTMxZDZmOTg1ZGZlZDBlNzhmMWZmZDU0Mzc4NDYzYWZlNjc5OTM4MGMyMGExM2E1NmIyNxJH"
    "c2hhMjU2OjgzNDE4NmU3YTYxNWYzNDBiMDcxOWUzOTE0YzUyM2FkNDdjOWI4ZjFmNTQ0MWRkOWFkOWI0MWEyMGYyN2U3NzQaHVsyLzJd"
    "IFJVTiBwcmludGYgJ2hpJzsgZXhpdCA3KgwIgpCT2AYQu5nMpAMyCwiDkJPYBhDUvfoeOkZleGVjdXRvciBmYWlsZWQgcnVubmluZyBb"
    "L2Jpbi9zaCAtYyBwcmludGYgJ2hpJzsgZXhpdCA3XTogZXhpdCBjb2RlOiA3"
)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def trace(*fields: bytes) -> str:
    return base64.b64encode(b"".join(fields)).decode()


def log(vertex: str, data: bytes) -> bytes:
    return field(3, field(1, vertex.encode()) + field(3, 1) + field(4, data))


def vertex(digest: str, name: str, **state: Any) -> bytes:
    message = field(1, digest.encode()) + field(3, name.encode())
    message += field(4, 1) if state.get("cached") else b""
    message += field(5, b"") if state.get("started") else b""
    message += field(6, b"") if state.get("completed") else b""
    return field(1, message + (field(7, state["error"].encode()) if "error" in state else b""))


def test_what_a_daemon_really_sent() -> None:
    assert decode_trace(LOG_AUX) == [VertexLog(vertex=STEP, data=b"hi")]
    assert decode_trace(FAILED_AUX) == [
        Vertex(
            digest=STEP,
            name="[2/2] RUN printf 'hi'; exit 7",
            started=True,
            completed=True,
            error="executor failed running [/bin/sh -c printf 'hi'; exit 7]: exit code: 7",
        )
    ]


def test_fields_of_newer_daemons_are_passed_over() -> None:
    strange = (
        field(99, 1 << 60) + field(98, b"x") + varint(97 << 3 | 1) + b"8" * 8 + varint(96 << 3 | 5) + b"4444"
    )
    assert decode_trace(trace(strange, log("v", b"a"), strange)) == [VertexLog("v", b"a")]


@pytest.mark.parametrize(
    "aux",
    [
        "not base64!",
        trace(b"\x0a\xff"),
        trace(b"\x0a\x05ab"),
        trace(b"\x80" * 20),
        trace(b"\x0b"),
        trace(b"\x08\x01"),
        LOG_AUX[:40],
    ],
)
def test_what_cannot_be_read_is_said_so(aux: str) -> None:
    with pytest.raises(TraceUnreadable):
        decode_trace(aux)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        events = decode_trace(base64.b64encode(data).decode())
    except TraceUnreadable:
        return
    assert all(isinstance(event, Vertex | VertexLog) for event in events)


def told(*messages: dict[str, Any]) -> tuple[list[str], BuildOutput]:
    lines: list[str] = []
    output = BuildOutput(lines.append)
    for message in messages:
        output.feed(message)
    output.close()
    return lines, output


def bk(*fields: bytes) -> dict[str, Any]:
    return {"id": "moby.buildkit.trace", "aux": trace(*fields)}


def test_steps_that_run_side_by_side_do_not_mix_their_lines() -> None:
    half = "é".encode()
    lines, _ = told(
        bk(vertex("a", "[1/2] RUN a", started=True), vertex("b", "[2/2] RUN b", started=True)),
        bk(log("a", b"one " + half[:1]), log("b", b"two\nthr")),
        bk(log("a", half[1:] + b"\n"), log("b", b"ee")),
        bk(vertex("a", "[1/2] RUN a", started=True, completed=True)),
    )
    assert lines == ["[1/2] RUN a", "[2/2] RUN b", "two", "one é", "three"]


def test_a_cached_step_and_the_failed_one() -> None:
    lines, output = told(
        bk(
            vertex("a", "[1/3] FROM x", cached=True), vertex("a", "[1/3] FROM x", cached=True, completed=True)
        ),
        bk(vertex("b", "[2/3] RUN false", started=True)),
        bk(vertex("b", "[2/3] RUN false", completed=True, error="exit code: 1")),
        bk(vertex("c", "[3/3] RUN other", completed=True, error="context canceled")),
        {"id": "moby.image.id", "aux": {"ID": "sha256:1"}},
    )
    assert lines == ["CACHED [1/3] FROM x", "[2/3] RUN false"]
    assert output.step == "[2/3] RUN false"
    assert output.image_id == "sha256:1"


def test_a_trace_that_cannot_be_read_does_not_end_the_build() -> None:
    lines, output = told({"id": "moby.buildkit.trace", "aux": "!"}, {"aux": {"ID": "sha256:2"}})
    assert lines == ["(progress that cannot be read: not base64)"]
    assert output.image_id == "sha256:2"


def test_the_classic_builder_sends_pieces_with_colours() -> None:
    lines, output = told(
        {"stream": "Step 1/2 : FROM x"},
        {"stream": "\n"},
        {"status": "Downloading", "progressDetail": {"current": 1}, "id": "abc"},
        {"status": "Digest: sha256:3"},
        {"stream": "Step 2/2 : RUN y\n"},
        {"stream": "\x1b[91mwarning: "},
        {"stream": "old\n\x1b[0m"},
        {"stream": "no end"},
    )
    assert lines == [
        "Step 1/2 : FROM x",
        "Digest: sha256:3",
        "Step 2/2 : RUN y",
        "warning: old",
        "no end",
    ]
    assert output.step == "Step 2/2 : RUN y"


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["a\r\nb\r\n"], ["a", "b"]),
        (["a\r", "\nb"], ["a", "b"]),
        (["10%\r20%\r", "30%\r", "done\n"], ["done"]),
        (["10%\r20%"], ["20%"]),
        (["\x1b]0;title\x07x\x1b[2K\x1b[1;31my\x1b[0m\n"], ["xy"]),
    ],
)
def test_lines_as_a_terminal_would_show_them_in_the_end(pieces: list[str], lines: list[str]) -> None:
    splitter = LineSplitter()
    assert [line for piece in pieces for line in splitter.feed(piece)] + splitter.flush() == lines


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(10) for line in splitter.feed("x" * 50_000)]
    assert sum(map(len, lines)) >= 500_000 - 64 * 1024
    assert max(map(len, lines)) == 64 * 1024
