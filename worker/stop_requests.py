"""Requests to stop a launch that do not come from its worker (`launch-worker stop`): the owner hears of them.

Only the owner may write a launch's record, so that the reason of a stop is kept by the one that tells its end. A
request stays until its launch is over: a worker that dies in between leaves it to the next owner, and a launch whose
image is still being built is stopped when it comes to wait.
"""

from __future__ import annotations

import asyncio

from worker.ledger.held import HeldLaunches
from worker.ledger.port import Ledger, StopRequest
from worker.ops.ridden_out import RiddenOut
from worker.tracking.run_stops import StopJob


class StopRequests:
    """One look at all requests each `interval` seconds."""

    def __init__(self, ledger: Ledger, held: HeldLaunches, interval: float) -> None:
        self._ledger = ledger
        self._held = held
        self._interval = interval

    async def run(self, stop: StopJob) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            with RiddenOut("stop_requests_failed"):
                for request in await self._ledger.stop_requests():
                    with RiddenOut("stop_requests_failed", launch_id=request.launch_id):
                        await self._serve(request, stop)

    async def _serve(self, request: StopRequest, stop: StopJob) -> None:
        held = next((held for held in self._held if held.launch_id == request.launch_id), None)
        if held is None:
            record = await self._ledger.read(request.launch_id)
            if record is None or not record.is_open:
                await self._ledger.forget_stop(request.launch_id)
        elif held.record.facts.status != "Stopping":
            await stop(request.launch_id, request.reason)
