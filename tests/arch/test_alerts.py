"""The alerts use only metrics that exist. An alert on another metric would silently never fire."""

from __future__ import annotations

import re
from pathlib import Path

from tokka.observability.metrics import Metrics

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yaml"


def test_alerts_use_metrics_that_exist() -> None:
    known = {name for name, _, _, _ in Metrics().catalogue}
    used = set(
        re.findall(
            r"\btokka_\w+", " ".join(re.findall(r"expr:.*?(?=\n\s+(?:for|labels):)", ALERTS.read_text(), re.DOTALL))
        )
    )
    assert len(used) >= 5
    assert {name.removesuffix("_bucket") for name in used} <= known
