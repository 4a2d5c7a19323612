"""Runs of a sweep are started only while the sweep goes on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.errors import Again, Never, Throttled
from worker.launch.record import RunRef

_STATE = """
query GetSweepState($entity: String, $project: String, $sweep: String!) {
  project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) { state } }
}"""

_GOES_ON = frozenset({"PENDING", "RUNNING", "PAUSED"})
"""W&B's agent asks for RUNNING or PAUSED; a sweep whose first runs are queued may still be PENDING."""

FRESH = 60.0
"""Seconds that an answer about a sweep is good for all its runs that are about to be submitted."""


@dataclass(slots=True)
class _Answer:
    """W&B's last word about one sweep."""

    state: str = ""
    """Upper case; empty: there is no such sweep."""
    asked_at: float = float("-inf")
    """In the time of the event loop."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sweeps:
    """Asks W&B about the sweeps of launches, once for all runs of a sweep that want to know at the same time."""

    def __init__(self, api: WandbApi | None) -> None:
        """`api`: None while W&B is offline; then every sweep is taken to go on."""
        self._api = api
        self._answers: dict[tuple[str, str, str], _Answer] = {}

    async def check(self, run: RunRef, sweep_id: str, *, max_age: float = 0.0) -> None:
        """`max_age`: seconds that an earlier answer may be old. An empty `sweep_id` is no sweep.

        Raises `Never` for a run of a sweep that is over or gone, `Again` when W&B does not say."""
        if not sweep_id or self._api is None:
            return
        state = await self._state(self._api, run, sweep_id, max_age)
        if state not in _GOES_ON:
            found = f"is over ({state.lower()})" if state else f"is not in {run.entity}/{run.project}"
            raise Never(
                f"Sweep {sweep_id} {found}, so its runs are not started;"
                " resume the sweep, or launch the run without sweep_id.",
                code="LW-SWEEP-OVER",
            )

    async def _state(self, api: WandbApi, run: RunRef, sweep_id: str, max_age: float) -> str:
        clock = asyncio.get_running_loop().time
        wanted = clock() - max_age
        self._forget_old(clock())
        answer = self._answers.setdefault((run.entity, run.project, sweep_id), _Answer())
        async with answer.asking:
            if answer.asked_at < wanted:
                asked_at = clock()
                answer.state = await _state_of(api, run, sweep_id)
                answer.asked_at = asked_at
            return answer.state

    def _forget_old(self, now: float) -> None:
        kept = {
            sweep: answer
            for sweep, answer in self._answers.items()
            if answer.asking.locked() or now - answer.asked_at <= FRESH
        }
        self._answers = kept


async def _state_of(api: WandbApi, run: RunRef, sweep_id: str) -> str:
    variables = {"entity": run.entity, "project": run.project, "sweep": sweep_id}
    try:
        answer = await api.graphql("GetSweepState", _STATE, variables)
    except Throttled as error:  # by W&B: the pace of SageMaker's calls has nothing to do with it
        raise Again(
            f"the state of sweep {sweep_id} is not known: {error}", retry_after=error.retry_after
        ) from error
    except WandbRefused as error:
        if error.status != 200:  # about the worker's key, not about the sweep
            raise Again(f"the state of sweep {sweep_id} is not known: {error}") from error
        return ""
    sweep = (answer.get("project") or {}).get("sweep") or {}
    return str(sweep.get("state") or "").upper()
