"""BuildKit's progress without a protobuf package.

With `version=2` the daemon sends `{"id": "moby.buildkit.trace", "aux": BASE64}`: a message
`moby.buildkit.v1.StatusResponse` (moby/buildkit, api/services/control/control.proto). Read here are, of

* StatusResponse: 1 vertexes, 3 logs;
* Vertex: 1 digest, 3 name, 4 cached, 5 started, 6 completed, 7 error;
* VertexLog: 1 vertex, 3 stream, 4 msg.

Unknown fields are passed over, so newer daemons do not matter. Pure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 64


class TraceUnreadable(ValueError):
    """The bytes are no protobuf message."""


@dataclass(frozen=True, slots=True)
class Vertex:
    """A step of the build; told again whenever its state changes."""

    digest: str
    name: str = ""
    """As in `[2/3] RUN make`."""
    cached: bool = False
    started: bool = False
    completed: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class VertexLog:
    """A piece of a step's output; it may begin and end within a line, or within a character."""

    vertex: str
    data: bytes


def decode_trace(aux: str) -> list[Vertex | VertexLog]:
    """The steps, then the output, of one trace message. Raises `TraceUnreadable`."""
    try:
        message = base64.b64decode(aux, validate=True)
    except binascii.Error as error:
        raise TraceUnreadable("not base64") from error
    events: list[Vertex | VertexLog] = []
    for number, value in _fields(message):
        if number == 1:
            events.append(_vertex(_bytes(value)))
        elif number == 3:
            events.append(_log(_bytes(value)))
    return events


def _vertex(message: bytes) -> Vertex:
    fields = dict(_fields(message))
    return Vertex(
        digest=_text(fields.get(1, b"")),
        name=_text(fields.get(3, b"")),
        cached=bool(fields.get(4, 0)),
        started=5 in fields,
        completed=6 in fields,
        error=_text(fields.get(7, b"")),
    )


def _log(message: bytes) -> VertexLog:
    fields = dict(_fields(message))
    return VertexLog(vertex=_text(fields.get(1, b"")), data=_bytes(fields.get(4, b"")))


def _text(value: int | bytes) -> str:
    return _bytes(value).decode(errors="replace")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TraceUnreadable("a number where bytes belong")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message, in order (protobuf.dev, 'Encoding')."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise TraceUnreadable(f"wire type {wire_type}")
        if position + length > len(message):
            raise TraceUnreadable("cut off")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A base-128 number and where the next thing begins."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS + 6, 7):
        if position >= len(message):
            raise TraceUnreadable("cut off in a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise TraceUnreadable("a number of more than ten bytes")
