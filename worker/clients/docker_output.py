"""What the docker daemon says while it builds, as lines of text; the same for both builders. Pure."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from worker.clients.buildkit_trace import TraceUnreadable, Vertex, VertexLog, decode_trace

_LONGEST_LINE = 64 * 1024
"""Characters; a longer line is cut into several, so that a build cannot fill our memory."""
_KEPT_LINES = 20
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_CLASSIC_STEP = re.compile(r"Step \d+/\d+ : .*")

_BUILDKIT_TRACE = "moby.buildkit.trace"


class LineSplitter:
    """Pieces of text → whole lines without colours; a progress line redrawn with `\\r` is told once, as it ended."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The lines that are complete now."""
        *lines, rest = (self._rest + text).split("\n")
        # What stands before a \r was drawn over; a \r at the very end may belong to a \r\n.
        cut = rest.rfind("\r", 0, len(rest) - 1)
        rest = rest[cut + 1 :] if cut >= 0 else rest
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._rest = rest
        return [_clean(line) for line in lines]

    def flush(self) -> list[str]:
        """The last line, when it came without its end."""
        rest, self._rest = self._rest, ""
        return [_clean(rest)] if rest else []


def _clean(line: str) -> str:
    shown = line.rstrip("\r").rpartition("\r")[2]
    return _ANSI.sub("", shown).rstrip()


class BuildOutput:
    """Turns the messages of a build stream into lines for `on_line`, and keeps what an error has to show:
    the step that runs and the last lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._classic = LineSplitter()
        self._vertices: dict[str, _VertexOutput] = {}
        self.step = ""
        """The classic builder's running step, or BuildKit's failed one."""
        self.image_id = ""
        """`sha256:…` once the daemon has told it: the only proof of success."""
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, message: Mapping[str, Any]) -> None:
        """Take one message of the stream."""
        aux = message.get("aux")
        if message.get("id") == _BUILDKIT_TRACE and isinstance(aux, str):
            self._feed_trace(aux)
        elif isinstance(aux, Mapping) and "ID" in aux:
            self.image_id = str(aux["ID"])
        elif "stream" in message:
            self._tell(self._classic.feed(str(message["stream"])))
        elif "status" in message and "progressDetail" not in message:
            self._tell([_clean(str(message["status"]))])

    def close(self) -> None:
        """Tell the lines that came without an end."""
        self._tell(self._classic.flush())
        for vertex in self._vertices.values():
            self._tell(vertex.splitter.flush())

    def _feed_trace(self, aux: str) -> None:
        try:
            events = decode_trace(aux)
        except TraceUnreadable as error:
            self._tell([f"(progress that cannot be read: {error})"])
            return
        for event in events:
            if isinstance(event, VertexLog):
                output = self._vertices.setdefault(event.vertex, _VertexOutput())
                self._tell(output.splitter.feed(output.decoder.decode(event.data)))
            else:
                self._feed_vertex(event)

    def _feed_vertex(self, vertex: Vertex) -> None:
        output = self._vertices.setdefault(vertex.digest, _VertexOutput())
        if (vertex.started or vertex.cached) and not output.told:
            output.told = True
            self._tell([f"CACHED {vertex.name}" if vertex.cached else vertex.name])
        if vertex.completed:
            self._tell(output.splitter.flush())
        if vertex.error and "context canceled" not in vertex.error:
            self.step = vertex.name

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            if not line:
                continue
            if _CLASSIC_STEP.fullmatch(line):
                self.step = line
            self.last_lines.append(line)
            self._on_line(line)


class _VertexOutput:
    """What is kept of one BuildKit step: steps run side by side, their lines must not mix."""

    def __init__(self) -> None:
        self.splitter = LineSplitter()
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.told = False
