"""What a second of an instance type costs, from LAUNCH_PRICES: AWS's price list is not asked."""

from __future__ import annotations

import re
from collections.abc import Mapping

from worker.errors import SettingsError

Prices = Mapping[str, float]
"""Instance type → USD an hour."""
_SEPARATOR = re.compile(r"[,\n]")


def parse_prices(text: str) -> Prices:
    """`ml.g5.xlarge=1.408,ml.m5.large=0.115`, or one a line, with `#` before what is no price.

    Raises `SettingsError` naming what is none."""
    prices: dict[str, float] = {}
    for part in _SEPARATOR.split(re.sub(r"#[^\n]*", "", text)):
        if not part.strip():
            continue
        name, _, price = part.partition("=")
        try:
            prices[name.strip()] = float(price)
        except ValueError:
            raise SettingsError(
                f"LAUNCH_PRICES: {part.strip()!r} is no price; write ml.g5.xlarge=1.408 (USD an hour)"
            ) from None
        if not name.strip() or not 0 <= prices[name.strip()] < float("inf"):
            raise SettingsError(f"LAUNCH_PRICES: {part.strip()!r} is no price of an instance type")
    return prices


def cost_of(prices: Prices | None, instance_type: str, billable_seconds: float | None) -> float | None:
    """USD for the billable seconds of all instances, an estimate; None: it has no price, or nothing is billed yet.

    The savings of a spot job are in its billable seconds already."""
    price = (prices or {}).get(instance_type)
    if price is None or billable_seconds is None:
        return None
    return round(price * billable_seconds / 3600, 4)
