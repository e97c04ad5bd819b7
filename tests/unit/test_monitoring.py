"""deploy/prometheus and deploy/grafana: names and labels that the code serves, and a way on for who is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from batchline import metrics

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
RULES: list[Json] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARD: Json = json.loads((ROOT / "deploy/grafana/batchline.json").read_text())
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
PROMETHEUS: Json = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
THEIRS = {"up": SCRAPED, "ALERTS": {"alertname", "alertstate"}}
WORDS = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")


def served() -> dict[str, set[str]]:
    """Every sample that some process serves, with its labels."""
    found = {sample.name: SCRAPED for family in metrics.REGISTRY.collect() for sample in family.samples}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            labels = SCRAPED | set(metric._labelnames)  # pyright: ignore[reportPrivateUsage]
            for described in metric.describe():
                endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                    described.type, ("",)
                )
                for ending in endings:
                    found[described.name + ending] = labels | ({"le"} if ending == "_bucket" else set[str]())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """What is asked of Prometheus, by who asks."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for note in BOARD["annotations"]["list"]:
        yield note["name"], note["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield (
                variable["name"],
                re.sub(r"label_values\((\w+), (\w+)\)", r"count by (\2) (\1)", variable["definition"]),
            )


def asked(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics of an expression, each with the labels it is picked by; and the labels after `by` and `on`."""
    grouped = {label.strip() for labels in WORDS.findall(expression) for label in labels.split(",") if label.strip()}
    bare = re.sub(r'"[^"]*"', '""', WORDS.sub("", expression))
    found: dict[str, set[str]] = {}
    for name, picked in re.findall(r"\b(batchline_\w+|process_\w+|up\b|ALERTS)(?:\{([^}]*)\})?", bare):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]~?", picked))
    return found, grouped


@pytest.mark.parametrize(("asker", "expression"), [pytest.param(*pair, id=pair[0]) for pair in expressions()])
def test_what_is_asked_for_is_served(asker: str, expression: str) -> None:
    """A metric that was renamed leaves an alert that never fires: every name and label is one that the code serves."""
    known = served() | THEIRS
    names, grouped = asked(expression)
    assert names, f"{asker} asks for nothing of ours"
    for name, labels in names.items():
        assert name in known, f"{asker}: nobody serves {name}"
        assert labels <= known[name], f"{asker}: {name} has no label {labels - known[name]}"
    assert grouped <= set[str]().union(*(known[name] for name in names)), f"{asker}: by labels that nothing has"


def test_a_wrong_name_or_label_is_found() -> None:
    """The test above can fail: it reads names, labels in braces and labels after `by`."""
    names, grouped = asked('sum by (le) (rate(batchline_x_bucket{a=~"b|c", d!="e"}[5m])) > on () up')
    assert names == {"batchline_x_bucket": {"a", "d"}, "up": set()}
    assert grouped == {"le"}
    assert {"le", "stage"} <= served()["batchline_stage_seconds_bucket"]
    assert "batchline_jobs_finished" not in served()


def test_every_job_that_is_named_is_scraped() -> None:
    """Alerts and dashboard go by the names of jobs in prometheus.yml, one for each kind of process."""
    jobs = {config["job_name"] for config in PROMETHEUS["scrape_configs"]}
    assert jobs == {f"batchline-{process}" for process in ("api", "worker", "scheduler", "autoscaler")}
    for asker, expression in expressions():
        for equal in re.findall(r'job="([^"]+)"', expression):
            assert equal in jobs, asker
        for pattern in re.findall(r'job=~"([^"]+)"', expression):
            assert any(re.fullmatch(pattern, job) for job in jobs), asker


def test_an_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    """Severity, a time that it must last, a number or the thing itself, and its heading in the runbook."""
    headings = {heading.lower() for heading in re.findall(r"^### (Batchline\w+)$", RUNBOOK, re.MULTILINE)}
    for rule in RULES:
        name = rule["alert"]
        assert rule["for"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert "{{ $" in rule["annotations"]["summary"] or name == "BatchlineNoApi", name
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (path, anchor) == ("docs/runbook.md", name.lower())
    names = [rule["alert"].lower() for rule in RULES]
    assert len(names) == len(set(names))
    assert headings == set(names), headings ^ set(names)


def test_every_alert_has_a_night_of_its_own() -> None:
    """Each is made to fire by a rule test of promtool (`make test-alerts`)."""
    tried = {
        case["alertname"]
        for path in (ROOT / "deploy/prometheus/tests").glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in RULES}


def test_links_of_the_runbook_lead_somewhere() -> None:
    """Anchors within it, and files beside it."""
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)#\s]*#?[^)\s]*)\)", RUNBOOK):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), target
        assert path or anchor in anchors, target


def test_grafana_would_take_the_dashboard() -> None:
    """Its shape as Grafana writes it: unique ids, a grid without overlaps, one datasource that a variable chooses."""
    assert BOARD["schemaVersion"] >= 36
    assert BOARD["title"]
    assert {v["name"]: v["type"] for v in BOARD["templating"]["list"]} == {"datasource": "datasource", "pool": "query"}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("stat", "timeseries")
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
