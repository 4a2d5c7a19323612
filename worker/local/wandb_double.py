"""A W&B server double that real, unmodified wandb clients accept (held to wandb 0.31 by a contract test).

It keeps everything in memory, answers GraphQL by operation name and stores what `file_stream` posts. A browser sees
projects and runs where W&B's app has them (`wandb_pages`).

Control endpoints, all JSON:
  GET  /_double/state    everything (`?console=0` leaves the log lines out)
  GET  /_double/stats    request counters and operations it does not know
  GET  /_double/ops      every GraphQL operation with its variables
  POST /_double/stop     {entity, project, run}: press the Stop button
  POST /_double/queue    {entity, queue, specs: [runSpec, …], priority?}: push items (creates the queue) → {ids}
  POST /_double/agent    {name, stop?, forget?}: ask a launch agent to stop polling, or forget it
  POST /_double/sweep    {entity, project, sweep, state}: a sweep is in this state
  POST /_double/job      {entity, project, name, type?, aliases?, files: {path: text}}: make an artifact → {id, version}
  POST /_double/fault    {match, status?, times?, latency?, cut?, when?, retry_after?}: see `Fault`
  POST /_double/strict   {writers?, console_lines?, run_posts?, project_posts?, queries?, revives?}: see `Strictness`
  POST /_double/reset
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from worker.local.ports import listening_socket
from worker.local.wandb_artifacts import ArtifactOperations
from worker.local.wandb_file_stream import client_of, take_post, writer_of
from worker.local.wandb_pages import Pages
from worker.local.wandb_queues import AgentOperations, QueueOperations
from worker.local.wandb_records import Json, OperationRefused, RunKey
from worker.local.wandb_runs import AccountOperations, RunOperations
from worker.local.wandb_state import WandbState
from worker.local.wandb_strict import Strictness, refusal

_MAX_BODY = 64 << 20
_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")

Answer = Callable[[], Awaitable[web.Response]]


@dataclass
class Fault:
    """What happens to the next `times` requests whose name contains `match`.

    A request's name is its GraphQL operation, `file_stream ENTITY/PROJECT/RUN`, `upload KEY` or `download KEY`."""

    match: str
    status: int = 0
    """Answer with this status; 0: the true answer (only delayed)."""
    times: int = 1
    latency: float = 0.0
    """Seconds to wait first."""
    cut: bool = False
    """Close the connection instead of answering."""
    when: Literal["before", "after"] = "before"
    """Before the effect, or after it: then the client never learns that it happened."""
    retry_after: float | None = None
    """Seconds for the header of that name, as a rate limit (429) sends it."""


class WandbDouble(WandbState):
    """The HTTP server over `WandbState`."""

    def __init__(self, entity: str, *, lease_seconds: float = 60.0, crash_after: float = 300.0) -> None:
        super().__init__(entity, lease_seconds=lease_seconds, crash_after=crash_after)
        self.faults: list[Fault] = []
        self._operations = (
            AccountOperations(self),
            RunOperations(self),
            QueueOperations(self),
            AgentOperations(self),
            ArtifactOperations(self),
        )

    def fault(
        self,
        match: str,
        *,
        status: int = 0,
        times: int = 1,
        latency: float = 0.0,
        cut: bool = False,
        when: Literal["before", "after"] = "before",
        retry_after: float | None = None,
    ) -> Fault:
        """Add a `Fault`; the first that matches and has times left is used."""
        added = Fault(match, status, times, latency, cut, when, retry_after)
        self.faults.append(added)
        return added

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.add_routes(
            [
                web.post("/graphql", self._graphql),
                web.post("/files/{entity}/{project}/{run}/file_stream", self._file_stream),
                web.put("/_storage/{key:.+}", self._put_storage),
                web.get("/_storage/{key:.+}", self._get_storage),
                web.get("/_double/{what}", self._read_control),
                web.post("/_double/{what}", self._write_control),
                *Pages(self).routes(),
            ]
        )
        return app

    async def _faulted(self, request: web.Request, name: str, answer: Answer) -> web.Response:
        """The true answer, or what the first matching fault makes of it."""
        fault = next((f for f in self.faults if f.times > 0 and f.match in name), None)
        if fault is None:
            return await answer()
        fault.times -= 1
        await asyncio.sleep(fault.latency)
        if not (fault.cut or fault.status):
            return await answer()
        if fault.when == "after":
            await answer()
        if fault.cut and request.transport is not None:
            request.transport.abort()
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.json_response(
            {"error": "injected by the double"}, status=fault.status or 500, headers=headers
        )

    async def _graphql(self, request: web.Request) -> web.Response:
        key = _check_auth(request)
        body = await request.json()
        query, variables = body["query"], body.get("variables") or {}
        named = _OPERATION.search(query)
        name = body.get("operationName") or (named[1] if named else "?")
        self.counts[f"graphql:{name}"] += 1
        self.operations.append(
            {
                "at": time.time(),
                "operation": name,
                "variables": variables,
                "headers": _wandb_headers(request),
                "key": key[-4:],
            }
        )

        if wait := self.limits.of_query(self.strict):
            return self._limited("graphql", wait)

        async def answer() -> web.Response:
            return web.json_response(self._execute(name, query, variables))

        return await self._faulted(request, name, answer)

    def _limited(self, what: str, wait: float) -> web.Response:
        self.counts[f"limited:{what}"] += 1
        headers = {"Retry-After": f"{wait:.3f}"}
        return web.json_response({"error": "rate limit exceeded"}, status=429, headers=headers)

    def _execute(self, name: str, query: str, variables: Json) -> Json:
        for operations in self._operations:
            handler: Callable[[Json], Json] | None = getattr(operations, f"op_{name}", None)
            if handler is None:
                continue
            try:
                return {"data": handler(variables)}
            except (OperationRefused, KeyError) as error:  # KeyError: a variable or an agent is missing
                return {"errors": [{"message": f"double: {error!r}"}]}
        self.unknown_operations[name] = query
        return {"errors": [{"message": f"double: unknown operation {name}"}]}

    async def _file_stream(self, request: web.Request) -> web.Response:
        _check_auth(request)
        body: Json = json.loads(await request.read() or b"{}")  # aiohttp has undone any gzip encoding
        key = RunKey(*(request.match_info[part] for part in ("entity", "project", "run")))
        if self.keep_bodies:
            self.bodies.append(body)
        self.counts["file_stream:data" if body else "file_stream:heartbeat"] += 1
        if wait := self.limits.of_post(self.strict, key):
            return self._limited("file_stream", wait)

        async def answer() -> web.Response:
            run = self.runs.get(key)
            if run is None:
                return web.json_response({"error": "run not found"}, status=404)
            writer, client = writer_of(request.headers), client_of(request.headers)
            status, why = refusal(self.strict, run, writer, client, body)
            if status:
                run.refused.append(why)
                return web.json_response({"error": why}, status=status)
            take_post(run, writer, body, client=client, revives=self.strict.revives)
            return web.json_response({"stopped": run.stopped, "limits": {}, "exitcode": None})

        return await self._faulted(request, f"file_stream {'/'.join(key)}", answer)

    async def _put_storage(self, request: web.Request) -> web.Response:
        key, content = request.match_info["key"], await request.read()
        self.counts["storage:put"] += 1

        async def answer() -> web.Response:
            self.storage[key] = content
            kind, *where = key.split("/", 4)
            if kind == "run" and len(where) == 4 and (run := self.run(*where[:3])):
                run.files[where[3]] = content
            return web.Response()

        return await self._faulted(request, f"upload {key}", answer)

    async def _get_storage(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        self.counts["storage:get"] += 1

        async def answer() -> web.Response:
            content = self.storage.get(key)
            return web.Response(status=404) if content is None else web.Response(body=content)

        return await self._faulted(request, f"download {key}", answer)

    async def _read_control(self, request: web.Request) -> web.Response:
        match request.match_info["what"]:
            case "state":
                return web.json_response(self.dump(console=request.query.get("console") != "0"))
            case "stats":
                unknown = list(self.unknown_operations)
                return web.json_response({"counts": dict(self.counts), "unknown_operations": unknown})
            case "ops":
                return web.json_response(self.operations)
        return web.Response(status=404)

    async def _write_control(self, request: web.Request) -> web.Response:
        body: Json = await request.json() if request.can_read_body else {}
        try:
            answer = self._control(request.match_info["what"], body)
        except (KeyError, TypeError) as error:
            return web.json_response({"error": repr(error)}, status=400)
        return web.Response(status=404) if answer is None else web.json_response(answer)

    def _control(self, what: str, body: Json) -> Json | None:
        match what:
            case "stop":
                self.stop(body["entity"], body["project"], body["run"])
            case "queue":
                self.queue(body["entity"], body["queue"])
                queue, priority = (body["entity"], body["queue"]), body.get("priority", 2)
                pushed = [self.push(*queue, spec, priority=priority) for spec in body.get("specs", [])]
                return {"ids": [item.id for item in pushed]}
            case "agent":
                agent = self.agent(body["name"])
                agent.stop_polling = agent.stop_polling or body.get("stop", False)
                if body.get("forget"):
                    del self.agents[agent.id]
            case "sweep":
                self.sweeps[body["entity"], body["project"], body["sweep"]] = body["state"]
            case "job":
                files = {path: text.encode() for path, text in body["files"].items()}
                where = (body["entity"], body["project"], body["name"])
                kind, aliases = body.get("type", "job"), body.get("aliases", ())
                artifact = self.add_artifact(*where, files, kind, aliases=aliases)
                return {"id": artifact.id, "version": artifact.version}
            case "fault":
                self.fault(**body)
            case "strict":
                self.strict = Strictness(**body)
            case "reset":
                self.reset()
                self.faults.clear()
            case _:
                return None
        return {"ok": True}


def _check_auth(request: web.Request) -> str:
    """The API key: basic auth `api:<key>` as the SDK sends it, or a bearer token (identity federation)."""
    auth = request.headers.get("Authorization", "")
    if auth.startswith("Bearer "):
        return auth.removeprefix("Bearer ")
    if auth.startswith("Basic "):
        user, _, key = base64.b64decode(auth.removeprefix("Basic ")).decode().partition(":")
        if user == "api" and len(key) >= 40:
            return key
    raise web.HTTPUnauthorized(text="user is not logged in")


def _wandb_headers(request: web.Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k.upper().startswith("X-WANDB") or k == "User-Agent"}


@contextlib.asynccontextmanager
async def running_wandb_double(
    port: int = 0, entity: str = "acme", *, lease_seconds: float = 60.0, crash_after: float = 300.0
) -> AsyncIterator[WandbDouble]:
    """Serve a double on 127.0.0.1; `base_url` says where. Raises `SettingsError` when the port is taken."""
    double = WandbDouble(entity, lease_seconds=lease_seconds, crash_after=crash_after)
    runner = web.AppRunner(double.application(), access_log=None)
    await runner.setup()
    try:
        sock = listening_socket(port, "W&B", "--wandb-port")
        await web.SockSite(runner, sock).start()
        double.base_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        yield double
    finally:
        await runner.cleanup()
