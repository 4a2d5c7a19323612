"""The mirror's wiring: what it cannot run without, and when it looks into a ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import wandb_api
from worker.errors import SettingsError
from worker.launch.redaction import KnownSecrets
from worker.ledger.opening import sees_ledger
from worker.mirroring import make_mirror, serve_mirror
from worker.ops.metrics import Metrics
from worker.settings import load_settings

NEEDED = {
    "LAUNCH_QUEUE_URL": "http://127.0.0.1/q",
    "LAUNCH_WANDB_QUEUES": "sm",
    "WANDB_API_KEY": "k" * 40,
    "AWS_REGION": "us-east-1",
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"LAUNCH_QUEUE_URL": ""}, "LAUNCH_QUEUE_URL"),
        ({"WANDB_API_KEY": ""}, "WANDB_API_KEY"),
        ({"WANDB_MODE": "offline"}, "WANDB_MODE"),
    ],
)
async def test_what_it_needs_is_named(changes: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        await serve_mirror(load_settings(None, {**NEEDED, **changes}), KnownSecrets())


async def test_a_mirror_without_queues_or_wandb_is_none() -> None:
    metrics = Metrics()
    settings = load_settings(None, {**NEEDED, "LAUNCH_WANDB_QUEUES": ""})
    async with wandb_api("http://127.0.0.1", ApiKey("k" * 40), metrics) as api:
        with pytest.raises(SettingsError, match="LAUNCH_WANDB_QUEUES"):
            make_mirror(settings, FakeLaunchQueue(), api, None, metrics)
    with pytest.raises(SettingsError, match="WANDB_API_KEY"):
        make_mirror(load_settings(None, NEEDED), FakeLaunchQueue(), None, None, metrics)


def test_a_ledger_on_another_host_is_not_made_by_looking(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    assert not sees_ledger(f"sqlite:///{file}")
    file.touch()
    assert sees_ledger(f"sqlite:///{file}")
    assert sees_ledger("dynamodb://table")
