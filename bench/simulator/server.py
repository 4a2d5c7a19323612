"""The simulator's HTTP server: AWS's operations by their header, W&B by its paths, and control for the bench.

Control, all JSON:
  POST /_bench/settings  {latency?, quotas?: {api: rate | null}, profile?: {…}}
  POST /_bench/messages  {bodies: [text, …]}: put launch messages on the queue
  POST /_bench/jobs      {ages: {name: seconds}}: training jobs that run already
  GET  /_bench/streams   job name → its log stream
  POST /_bench/print     {per_second, most?}: all jobs print at this pace from now on
  POST /_bench/end       {within}: all jobs complete, spread over so many seconds from now on
  GET  /_bench/time      the simulator's clock, epoch seconds
  POST /_bench/window    counters and latencies begin anew
  POST /_bench/reset     no jobs, no messages, no runs
  GET  /_bench/report    what happened in the window, and what there is
  POST /_bench/stop      {paths: [entity/project/run, …]}: Stop is pressed in these runs
  GET  /_bench/stops     when Stop was pressed, by run; when StopTrainingJob came, by job
  GET  /_bench/runs      of each run: when it was opened and posted to, ingestion time of its newest line
"""

from __future__ import annotations

import asyncio
import inspect
import json
import resource
import time
from typing import Any

from aiohttp import web

from bench.simulator.errors import AwsError
from bench.simulator.jobs import Profile, VirtualJobs
from bench.simulator.logs import LogsOperations
from bench.simulator.quotas import Quotas
from bench.simulator.sagemaker import SageMakerOperations
from bench.simulator.sqs import SqsOperations
from bench.simulator.sts import CALLER
from bench.simulator.wandb_sink import WandbSink

Json = dict[str, Any]
_AWS_JSON = "application/x-amz-json-1.1"
LATENCY = 0.1
"""Seconds added to each call."""


class Simulator:
    """State and routes of the simulated services."""

    def __init__(self) -> None:
        self.jobs = VirtualJobs()
        self.sagemaker = SageMakerOperations(self.jobs)
        self.logs = LogsOperations(self.jobs)
        self.sqs = SqsOperations()
        self.wandb = WandbSink()
        self.quotas = Quotas()
        self.latency = LATENCY
        self.base_url = ""
        self._services = {
            "SageMaker": self.sagemaker,
            "Logs_20140328": self.logs,
            "AmazonSQS": self.sqs,
        }
        self._window_began = time.monotonic()
        self._cpu_at_window = _cpu_seconds()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request."""
        raw = await request.read()
        target = request.headers.get("X-Amz-Target", "")
        if target:
            return await self._aws(target, raw)
        path = request.path
        if path.startswith("/_bench/"):
            return web.json_response(self._control(path.removeprefix("/_bench/"), json.loads(raw or b"{}")))
        await asyncio.sleep(self.latency / 2)
        answer = self._other(request, raw)
        await asyncio.sleep(self.latency / 2)
        return answer

    async def _aws(self, target: str, raw: bytes) -> web.Response:
        service, _, operation = target.partition(".")
        admitted = self.quotas.admit(operation)
        await asyncio.sleep(self.latency / 2)
        if admitted:
            status, text = await self._answer(service, operation, json.loads(raw or b"{}"))
        else:
            status, text = 400, _error("ThrottlingException", "Rate exceeded")
        await asyncio.sleep(self.latency / 2)
        return web.Response(status=status, text=text, content_type=_AWS_JSON)

    async def _answer(self, service: str, operation: str, ask: Json) -> tuple[int, str]:
        try:
            answer = self._operation(service, operation)(ask)
            if inspect.isawaitable(answer):
                answer = await answer
        except AwsError as error:
            return 400, _error(error.code, str(error))
        return 200, answer if isinstance(answer, str) else json.dumps(answer)

    def _operation(self, service: str, operation: str) -> Any:
        found = getattr(self._services.get(service), f"op_{operation}", None)
        if found is None:
            raise AwsError("UnknownOperationException", f"the simulator does not know {service}.{operation}")
        return found

    def _other(self, request: web.BaseRequest, raw: bytes) -> web.Response:
        path = request.path
        if path.endswith("/file_stream"):
            run = path.removeprefix("/files/").removesuffix("/file_stream")
            return web.json_response(self.wandb.file_stream(run, raw))
        if path == "/graphql":
            body: Json = json.loads(raw)
            (body.get("variables") or {})["base"] = self.base_url
            return web.json_response(self.wandb.graphql(body))
        if path.startswith("/_storage/"):
            self.wandb.upload(path.removeprefix("/_storage/"), raw)
            return web.Response()
        if b"Action=GetCallerIdentity" in raw:
            self.quotas.admit("GetCallerIdentity")
            return web.Response(text=CALLER, content_type="text/xml")
        return web.Response(status=404, text=f"the simulator does not know {request.method} {path}")

    def _control(self, what: str, body: Json) -> Json:
        match what:
            case "report":
                return self._report()
            case "runs":
                return {
                    path: [run.opened_at, run.posted_at, run.console.last_ingested, run.heard_at]
                    for path, run in self.wandb.runs.items()
                }
            case "stops":
                return {"pressed": self.wandb.pressed_at, "stopped": self.sagemaker.stopped_at}
            case "streams":
                return {job.name: job.stream for job in self.jobs}
            case "time":
                return {"now": time.time()}
        return {"ok": True} if self._change(what, body) else {"error": f"no such control: {what}"}

    def _change(self, what: str, body: Json) -> bool:
        now = time.time()
        match what:
            case "settings":
                self._set(body)
            case "messages":
                for text in body["bodies"]:
                    self.sqs.send(text)
            case "jobs" | "print" | "end":
                self._change_jobs(what, body, now)
            case "stop":
                self.wandb.pressed_at.update(dict.fromkeys(body["paths"], now))
            case "window":
                self._begin_window()
            case "reset":
                self.jobs.clear()
                self.sqs.clear()
                self.wandb.clear()
                self.sagemaker.clear()
                self._begin_window()
            case _:
                return False
        return True

    def _change_jobs(self, what: str, body: Json, now: float) -> None:
        match what:
            case "jobs":
                for name, age in body["ages"].items():
                    self.jobs.add_running(name, {}, now, age)
            case "print":
                self.jobs.print_from(now, body["per_second"], body.get("most"))
            case "end":
                self.jobs.end(now, body["within"])

    def _set(self, body: Json) -> None:
        self.latency = body.get("latency", self.latency)
        self.quotas.set(body.get("quotas") or {})
        if (profile := body.get("profile")) is not None:
            self.jobs.profile = Profile(**profile)

    def _begin_window(self) -> None:
        self._window_began = time.monotonic()
        self._cpu_at_window = _cpu_seconds()
        self.quotas.reset_counts()
        self.wandb.reset_window()
        self.logs.events = 0

    def _report(self) -> Json:
        now = time.time()
        self.jobs.advance(now)
        printed = sum(job.printer.count(job.printer.seen_until(int(now * 1000))) for job in self.jobs)
        return {
            "seconds": time.monotonic() - self._window_began,
            "cpu_seconds": _cpu_seconds() - self._cpu_at_window,
            "calls": dict(self.quotas.calls),
            "throttled": dict(self.quotas.throttled),
            "jobs": len(self.jobs),
            "created_at": self.sagemaker.created_at,
            "lines_in_cloudwatch": printed,
            "events_read": self.logs.events,
            "queue": self.sqs.depth(),
            "dead": len(self.sqs.dead),
            "wandb": self.wandb.summary(),
        }


def _error(code: str, message: str) -> str:
    return json.dumps({"__type": code, "message": message})


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
