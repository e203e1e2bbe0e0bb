"""What `deploy/observability` ships: rules that promtool accepts, and metrics that exist."""

import json
import re
import subprocess

import yaml

from feature_pipeline.model.instruments import INSTRUMENTS, Instrument, Kind
from feature_pipeline_tests.fixtures.prometheus import RULES, program

FOLDER = RULES.parent
DOCS = FOLDER.parents[1] / "docs" / "metrics.md"
UNITS = {"s": "_seconds", "By": "_bytes"}


def prometheus_name(one: Instrument) -> str:
    """As OpenTelemetry's rules translate it."""
    unit = UNITS.get(one.unit, "")
    return one.name.replace(".", "_") + unit + ("_total" if one.kind is Kind.COUNTER else "")


NAMES = {prometheus_name(one): one for one in INSTRUMENTS.values()}
METRIC = re.compile(r"(feature_pipeline_[a-z0-9_]+)(?:\{([^}]*)\})?")


def expressions() -> list[str]:
    """Every query of the dashboard and of the rules."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return queries + [rule["expr"] for group in groups for rule in group["rules"]]


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    tool = program("promtool")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [tool, *command], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_a_line_in_the_docs() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert fired == alerts
    text = DOCS.read_text()
    assert {alert for alert in alerts if f"| `{alert}` |" not in text} == set()


def test_queries_name_metrics_and_labels_that_exist() -> None:
    for expression in expressions():
        names = METRIC.findall(expression)
        assert names or "up{" in expression, expression
        for name, matchers in names:
            plain = re.sub("_bucket$", "", name)
            assert plain in NAMES, expression
            labels = {label.replace(".", "_") for label in NAMES[plain].labels}
            assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= labels, expression


def test_every_metric_is_on_the_dashboard_or_in_a_rule_and_in_the_docs() -> None:
    shown = {re.sub("_bucket$", "", n) for e in expressions() for n, _ in METRIC.findall(e)}
    assert NAMES.keys() - shown == set()
    text = DOCS.read_text()
    assert {name for name in NAMES if f"| `{name}` |" not in text} == set()
