"""What tests of deploy/ share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy.policies import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a copy of deploy/, to be edited."""
    shutil.copytree(ROOT / "deploy", tmp_path / "checkout" / "deploy")
    return tmp_path / "checkout"
