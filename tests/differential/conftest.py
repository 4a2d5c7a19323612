"""W&B's agent is quiet here: what it says of hundreds of launches would bury what failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("wandb")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)
