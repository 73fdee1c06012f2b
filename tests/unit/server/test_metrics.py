"""Names and labels are a promise to dashboards and alerts."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pericard.engine.forwarding import Forwarding
from pericard.metrics import Metrics

ROOT = Path(__file__).resolve().parents[3]

#: Name → type and labels; a change here breaks somebody's alert.
PROMISED = {
    "pericard_build": ("info", set()),
    "pericard_environment": ("info", set()),
    "pericard_environment_findings": ("gauge", set()),
    "pericard_models_ready": ("gauge", set()),
    "pericard_requests": ("counter", {"code"}),
    "pericard_predictions": ("counter", {"model", "status"}),
    "pericard_queue_depth": ("gauge", set()),
    "pericard_queue_seconds": ("histogram", set()),
    "pericard_batch_seconds": ("histogram", set()),
    "pericard_batch_size": ("histogram", set()),
    "pericard_audit_commit_seconds": ("histogram", set()),
    "pericard_audit_available": ("gauge", set()),
    "pericard_audit_size": ("gauge", set()),
    "pericard_licence_days_left": ("gauge", {"model"}),
    "pericard_weights_locked": ("gauge", {"model"}),
    "pericard_model_loads": ("counter", {"model", "result"}),
    "pericard_known_answer_failures": ("counter", {"model"}),
    "pericard_known_answers_passed_timestamp": ("gauge", {"model"}),
    "pericard_engine_confinement": ("gauge", {"layer"}),
    "pericard_policy_loads": ("counter", {"result"}),
    "pericard_policy_refused": ("gauge", set()),
}


def test_names_types_and_labels_are_stable() -> None:
    metrics = Metrics()
    found = {
        collector._name: (collector._type, set(collector._labelnames))
        for collector in vars(metrics).values()
        if hasattr(collector, "_labelnames")
    }

    assert found == PROMISED


def test_each_metric_has_words() -> None:
    for family in text_string_to_metric_families(Metrics().render().decode()):
        assert re.match(r"[A-Z1].*\.$", family.documentation), family.name


def test_the_text_is_prometheus_text() -> None:
    metrics = Metrics()
    metrics.requests.labels("ok").inc()
    metrics.build.info({"version": "1", "runtime": "ab"})

    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }

    assert samples["pericard_requests_total"] == 1
    assert samples["pericard_build_info"] == 1


def test_two_of_them_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.audit_size.set(5)

    assert other.registry.get_sample_value("pericard_audit_size") == 0
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


def test_the_alerts_ask_only_for_what_there_is() -> None:
    metrics = Metrics()
    metrics.registry.register(Forwarding(Path("none"), lambda: 0))  # where a collector is configured
    text = metrics.render().decode() + "pericard_requests_total pericard_predictions_total pericard_build_info"
    known = set(re.findall(r"pericard_\w+", text)) | set(PROMISED)
    rules = yaml.safe_load((ROOT / "configs/prometheus/alerts.yml").read_text(encoding="utf-8"))
    asked = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in re.findall(r"\bpericard_\w+", str(rule["expr"]))
    }

    assert asked - known == set()
