"""Runs of a sweep are started only while the sweep goes on."""

from __future__ import annotations

from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.errors import Again, Never
from worker.launch.message import Launch

_STATE = """
query GetSweepState($entity: String, $project: String, $sweep: String!) {
  project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) { state } }
}"""

_GOES_ON = frozenset({"PENDING", "RUNNING", "PAUSED"})
"""W&B's agent asks for RUNNING or PAUSED; a sweep whose first runs are queued may still be PENDING."""


class Sweeps:
    """Asks W&B about the sweep of a launch."""

    def __init__(self, api: WandbApi | None) -> None:
        """`api`: None while W&B is offline; then every sweep is taken to go on."""
        self._api = api

    async def check(self, launch: Launch) -> None:
        """Raises `Never` for a run of a sweep that is over or gone, `Again` when W&B does not say."""
        if not launch.sweep_id or self._api is None:
            return
        run = launch.run
        variables = {"entity": run.entity, "project": run.project, "sweep": launch.sweep_id}
        try:
            answer = await self._api.graphql("GetSweepState", _STATE, variables)
        except WandbRefused as error:
            if error.status != 200:  # about the worker's key, not about the sweep
                raise Again(f"the state of sweep {launch.sweep_id} is not known: {error}") from error
            answer = {}
        sweep = (answer.get("project") or {}).get("sweep") or {}
        state = str(sweep.get("state") or "").upper()
        if state not in _GOES_ON:
            found = f"is over ({state.lower()})" if state else f"is not in {run.entity}/{run.project}"
            raise Never(
                f"Sweep {launch.sweep_id} {found}, so its runs are not started;"
                " resume the sweep, or launch the run without sweep_id.",
                code="LW-SWEEP-OVER",
            )
