"""W&B: login, entity, launch queues, what the server can do."""

from __future__ import annotations

from collections.abc import Sequence

from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.doctor.check import Check, failed, ok, skipped
from worker.errors import Unreachable
from worker.launch.redaction import KnownSecrets
from worker.ops.metrics import Metrics
from worker.resources import key_places
from worker.settings import Settings

QUEUE_PROJECT = "model-registry"
"""All launch queues live in this project of their entity (LAUNCH_DEFAULT_PROJECT of wandb)."""

_VIEWER = "query Viewer { viewer { entity username teams { edges { node { name } } } } }"
_QUEUES = """
query ProjectRunQueues($entity: String!, $projectName: String!) {
  project(entityName: $entity, name: $projectName) { runQueues { id name } }
}"""


async def wandb_checks(settings: Settings, region: str, secrets: KnownSecrets) -> Sequence[Check]:
    """`secrets` learns the key."""
    if settings.wandb_mode == "offline":
        return [skipped("W&B", "WANDB_MODE=offline: companion runs go into folders for `wandb sync`")]
    key = await api_key(settings, region, secrets)
    if key is None:
        return [
            failed(
                "W&B login",
                "there is no W&B API key: nothing is reported to launch queues, logs go into folders",
                "set WANDB_API_KEY or LAUNCH_WANDB_API_KEY_SOURCE, or say WANDB_MODE=offline",
            )
        ]
    async with wandb_api(settings.wandb_base_url, key, Metrics()) as api:
        return await _server(api, settings)


async def api_key(settings: Settings, region: str, secrets: KnownSecrets) -> ApiKey | None:
    """The key as `run` finds it; None: there is none, or W&B is offline. Raises `SettingsError`."""
    if settings.wandb_mode == "offline":
        return None
    value = await key_places(settings, region).read()
    return ApiKey(value, secrets=secrets) if value else None


async def _server(api: WandbApi, settings: Settings) -> list[Check]:
    try:
        viewer = (await api.graphql("Viewer", _VIEWER, {})).get("viewer")
    except Unreachable as error:
        return [failed("W&B login", str(error), "check WANDB_BASE_URL, the network, and proxies")]
    except WandbRefused as error:
        return [_refused(error, settings)]
    if not viewer:
        return [_refused(None, settings)]
    features = await api.features()
    teams = [edge["node"]["name"] for edge in (viewer.get("teams") or {}).get("edges", ())]
    return [
        ok("W&B login", f"{viewer.get('username') or viewer.get('entity')} at {settings.wandb_base_url}"),
        ok("W&B features", ", ".join(sorted(features)) or "none told: an older server"),
        *await _queues(api, settings, viewer.get("entity") or "", teams),
    ]


def _refused(error: WandbRefused | None, settings: Settings) -> Check:
    said = f": {error}" if error else ""
    return failed(
        "W&B login",
        f"{settings.wandb_base_url} does not take the API key{said}",
        "set WANDB_API_KEY to a key of this server (a service account's); check WANDB_BASE_URL",
    )


async def _queues(api: WandbApi, settings: Settings, own: str, teams: Sequence[str]) -> list[Check]:
    """Entity and queues that `mirror` reads; `own`: the entity of the key's account."""
    entities = {own, *teams}
    name = settings.entity or own
    if name not in entities:
        return [
            failed(
                "W&B entity",
                f"the key's account is not in {name!r}, but in {', '.join(sorted(entities - {''}))}",
                "correct LAUNCH_ENTITY, or add the account to the team",
            )
        ]
    entity = ok("W&B entity", name)
    if not settings.wandb_queues:
        return [entity, skipped("W&B queues", "LAUNCH_WANDB_QUEUES is not set: no launch queue is mirrored")]
    data = await api.graphql("ProjectRunQueues", _QUEUES, {"entity": name, "projectName": QUEUE_PROJECT})
    known = {queue["name"] for queue in (data.get("project") or {}).get("runQueues") or ()}
    missing = [queue for queue in settings.wandb_queues if queue not in known]
    if missing:
        what = f"{name} has no launch queue {', '.join(missing)}"
        has = f" ({', '.join(sorted(known))} exist)" if known else ""
        return [
            entity,
            failed("W&B queues", what + has, "correct LAUNCH_WANDB_QUEUES, or create the queue in W&B"),
        ]
    return [entity, ok("W&B queues", ", ".join(settings.wandb_queues))]
