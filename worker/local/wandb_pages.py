"""Pages of the W&B double for people: what stands where W&B's app has its projects and runs. Plain HTML, no script."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from aiohttp import web

from worker.local.wandb_records import DoubleRun, RunKey
from worker.local.wandb_state import WandbState

LINES = 5000
"""Console lines on a run's page: the last ones. All of them are in its files, under logs/."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = (
    "body{font-family:sans-serif;margin:2em;max-width:75em}"
    "td{text-align:left;vertical-align:top;padding:.1em 1em .1em 0}"
    "td,pre{overflow-wrap:anywhere;white-space:pre-wrap}pre{background:#f4f4f4;padding:1em}"
)


class Pages:
    """The projects, a project with its runs, a run, and a run's files."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """The addresses are those of W&B's app, as the worker names them."""
        run = "/{entity}/{project}/runs/{run}"
        return [
            web.get("/", self._projects),
            web.get("/{entity}/{project}", self._project),
            web.get(run, self._run),
            web.get(run + "/files/{name:.+}", self._file),
        ]

    async def _projects(self, _: web.Request) -> web.Response:
        counted = collections.Counter((key.entity, key.project) for key in self._state.runs)
        rows = [
            (_link(f"/{quote(entity)}/{quote(project)}", f"{entity}/{project}"), f"{number} runs")
            for (entity, project), number in sorted(counted.items())
        ]
        return _page("Projects", _table(rows) or "<p>No run yet.</p>")

    async def _project(self, request: web.Request) -> web.Response:
        entity, project = request.match_info["entity"], request.match_info["project"]
        runs = [run for key, run in self._state.runs.items() if key[:2] == (entity, project)]
        if not runs:
            return _missing(f"no run in {entity}/{project}")
        newest_first = sorted(runs, key=lambda run: run.transitions[0][0], reverse=True)
        rows = [
            (
                _link(_address(run.key), run.key.run),
                escape(_title(run)),
                escape(self._state.run_state(run)),
                _moment(run.transitions[0][0]),
                f"{len(run.console())} lines",
            )
            for run in newest_first
        ]
        return _page(f"{entity}/{project}", _table(rows), above=_link("/", "projects"))

    async def _run(self, request: web.Request) -> web.Response:
        key = RunKey(*(request.match_info[part] for part in ("entity", "project", "run")))
        run = self._state.runs.get(key)
        if run is None:
            return _missing(f"no run {'/'.join(key)}")
        above = _link(f"/{quote(key.entity)}/{quote(key.project)}", f"{key.entity}/{key.project}")
        return _page(_title(run), "".join(self._parts(run)), above=above)

    def _parts(self, run: DoubleRun) -> Iterable[str]:
        state = self._state.run_state(run) + (", Stop was pressed" if run.stopped else "")
        code = "" if run.exit_code is None else f", exit code {run.exit_code}"
        facts = {
            "run": run.key.run,
            "state": f"{state}{code}",
            "since": " → ".join(f"{name} {_moment(at)}" for at, name in run.transitions),
            "group": run.fields.get("groupName"),
            "job type": run.fields.get("jobType"),
            "tags": ", ".join(run.fields.get("tags") or ()),
            "notes": run.fields.get("notes"),
        }
        yield _table((escape(name), escape(str(fact))) for name, fact in facts.items() if fact)
        for alert in run.alerts:
            yield f"<p><b>Alert: {escape(str(alert.get('title')))}</b> {escape(str(alert.get('text')))}</p>"
        yield _section("Config", _values(_unwrapped(run.config)))
        yield _section("Summary", _values(run.summary))
        yield _section("Files", _table(_file_row(run, name) for name in sorted(run.files)))
        yield _section("Console", _console(run.console_text()))

    async def _file(self, request: web.Request) -> web.Response:
        *key, name = (request.match_info[part] for part in ("entity", "project", "run", "name"))
        run = self._state.runs.get(RunKey(*key))
        if run is None or name not in run.files:
            return _missing(f"no file {name} of run {'/'.join(key)}")
        # As text, whatever it is: a run's file must not act in the browser.
        return web.Response(
            body=run.files[name], content_type="text/plain", charset="utf-8", headers=_HEADERS
        )


def _page(title: str, body: str, *, above: str = "", status: int = 200) -> web.Response:
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    text = f"{head}<p>W&amp;B double of the local stack {above}</p><h1>{escape(title)}</h1>{body}\n"
    return web.Response(text=text, content_type="text/html", status=status, headers=_HEADERS)


def _missing(what: str) -> web.Response:
    body = "<p>The local stack keeps runs in memory, while it runs.</p>"
    return _page(f"404: {what}", body, above=_link("/", "projects"), status=404)


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body or '<p>none</p>'}"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """The cells are HTML already."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _values(values: Mapping[str, Any]) -> str:
    shown = {
        name: x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for name, x in values.items()
    }
    return _table((escape(name), escape(text)) for name, text in sorted(shown.items()))


def _unwrapped(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lr": {"value": 0.1}}` is how W&B's clients send it; `_wandb` is their own."""
    return {
        name: x["value"] if isinstance(x, dict) and "value" in x else x
        for name, x in config.items()
        if name != "_wandb"
    }


def _console(lines: list[str]) -> str:
    if not lines:
        return ""
    left_out = len(lines) - LINES
    note = f"<p>The last {LINES} of {len(lines)} lines.</p>" if left_out > 0 else ""
    return f"{note}<pre>{escape(chr(10).join(lines[-LINES:]))}</pre>"


def _file_row(run: DoubleRun, name: str) -> tuple[str, str]:
    return _link(f"{_address(run.key)}/files/{quote(name)}", name), f"{len(run.files[name]):,} bytes"


def _title(run: DoubleRun) -> str:
    return str(run.fields.get("displayName") or run.key.run)


def _address(key: RunKey) -> str:
    return f"/{quote(key.entity)}/{quote(key.project)}/runs/{quote(key.run)}"


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + " UTC"
