"""How the double takes a file_stream post: where each line lands, and what it does to the run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from worker.local.wandb_records import (
    CONSOLE,
    HISTORY,
    SUMMARY,
    DoubleRun,
    Json,
    Overwrite,
    StreamPost,
)


def writer_of(headers: Mapping[str, str]) -> str:
    """Who writes: "" for a plain run, the client id in shared mode.

    In shared mode every writer starts at offset 0, so they are kept apart by this header. What the real server
    does is not public; it must do something equivalent, and it shows one merged log."""
    shared = headers.get("X-WANDB-USE-ASYNC-FILESTREAM") == "true"
    return headers.get("X-WANDB-ASYNC-CLIENT-ID", "") if shared else ""


def client_of(headers: Mapping[str, str]) -> str:
    """The kind of client: `wandb-core`, `launch-worker`."""
    return headers.get("User-Agent", "").partition("/")[0]


def take_post(run: DoubleRun, writer: str, body: Json, *, client: str = "", revives: bool = False) -> None:
    """Store one post. A later post at the same offset replaces lines, as the SDK's terminal emulation needs.
    `revives`: whatever comes after the end of the run makes it running again."""
    now = time.time()
    run.seen_at = now
    if not body:
        run.heartbeats.append(now)
    files: dict[str, Json] = body.get("files") or {}
    run.posts.append(
        StreamPost(
            at=now,
            writer=writer,
            files={name: (chunk["offset"], len(chunk["content"])) for name, chunk in files.items()},
            rest={key: value for key, value in body.items() if key != "files"},
        )
    )
    if not files.keys().isdisjoint((CONSOLE, HISTORY)):
        run.clients.add(client)
    for name, chunk in files.items():
        _store_lines(run, writer, name, chunk["offset"], chunk["content"])
        if name == SUMMARY and chunk["content"]:
            latest = json.loads(chunk["content"][-1])
            run.summary = {**run.summary, **latest} if writer else latest
    run.uploaded += body.get("uploaded") or []
    if body.get("complete"):
        run.exit_code = body.get("exitcode")
        run.move("finished" if run.exit_code == 0 else "failed")
    elif run.state in ("pending", "crashed") or revives:
        # A run that got `complete` keeps its state unless the double is strict.
        run.move("running")


def _store_lines(run: DoubleRun, writer: str, name: str, offset: int, content: list[str]) -> None:
    stored = run.lines.setdefault(writer, {}).setdefault(name, {})
    for number, line in enumerate(content, offset):
        old = stored.get(number)
        if name in (CONSOLE, HISTORY) and old is not None and old != line:
            run.overwrites.append(Overwrite(writer, name, number, old, line))
        stored[number] = line
