"""LAUNCH_PRICES: in place, or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.resources import read_prices
from worker.tracking.prices import parse_prices


def test_prices_stand_in_the_setting_or_in_a_file(tmp_path: Path) -> None:
    expected = {"ml.g5.xlarge": 1.408, "ml.m5.large": 0.115}
    assert parse_prices("ml.g5.xlarge=1.408, ml.m5.large = 0.115") == expected
    file = tmp_path / "prices"
    file.write_text("# us-east-1\nml.g5.xlarge=1.408  # GPU\n\nml.m5.large=0.115\n")
    assert read_prices(str(file)) == expected
    assert read_prices("") == {}


@pytest.mark.parametrize("text", ["ml.g5.xlarge=cheap", "=1", "a=1,ml.m5.large", "a=-1", "a=nan", "a=inf"])
def test_what_is_no_price_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match="LAUNCH_PRICES"):
        parse_prices(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LAUNCH_PRICES: .*No such file"):
        read_prices(str(tmp_path / "none"))
