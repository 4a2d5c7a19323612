"""`docs/metrics.md` is rendered from the metrics: `python -m tests.unit.test_metrics_page > docs/metrics.md`. What the
dashboard and the alert rules ask for is really exported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.ops.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "launch-worker.json"
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yml"

HEADER = """\
# Metrics

`launch-worker run` and `launch-worker mirror` serve them at `/metrics` on `LAUNCH_HTTP_HOST` and `LAUNCH_HTTP_PORT`,
in Prometheus' text format. A counter's series ends in `_total`; a histogram has `_bucket`, `_sum` and `_count`. Every
worker tells of itself: sum over workers. Only `launch_queue_messages` and `launch_queue_backed_up_seconds` are about
what all share: take the largest. SQS tells the age of its oldest message to CloudWatch only
(`ApproximateAgeOfOldestMessage`).

`deploy/grafana/launch-worker.json` is a dashboard for Grafana (import it, choose the data source),
`deploy/grafana/alerts.yml` has alert rules for Prometheus. `tests/unit/test_metrics_page.py` renders this table from
the code and compares all three with what is exported.
"""


def exported() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Name as it stands on the page → kind, meaning, labels."""
    registry = Metrics().registry
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for family in registry.collect():
        collector: Any = registry._names_to_collectors[family.name]
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, family.documentation, tuple(collector._labelnames))
    return found


def render() -> str:
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
        for name, (kind, meaning, labels) in sorted(exported().items())
    ]
    return "\n".join([HEADER, "| metric | kind | labels | meaning |", "|---|---|---|---|", *rows, ""])


def series() -> set[str]:
    """Every series that a query may name."""
    names: set[str] = set()
    for name, (kind, _, _) in exported().items():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def expressions(value: Any) -> list[str]:
    """All `expr` in a dashboard or a file of rules."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for item in value.values() for found in expressions(item)]
    return [found for item in value for found in expressions(item)] if isinstance(value, list) else []


def test_the_page_is_what_the_metrics_say() -> None:
    assert PAGE.read_text() == render(), "python -m tests.unit.test_metrics_page > docs/metrics.md"


@pytest.mark.parametrize("path", [DASHBOARD, ALERTS], ids=lambda path: path.name)
def test_what_is_asked_for_is_exported(path: Path) -> None:
    text = path.read_text()
    asked = expressions(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    named = {name for expression in asked for name in re.findall(r"\blaunch_\w+", expression)}
    assert len(asked) >= 8
    assert named - series() == set()


def test_each_metric_is_on_the_dashboard() -> None:
    shown = " ".join(expressions(json.loads(DASHBOARD.read_text())))
    assert [name for name in exported() if name not in shown] == []


def test_each_alert_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert [rule["alert"] for rule in rules if not rule["annotations"].get("description")] == []


if __name__ == "__main__":
    sys.stdout.write(render())
