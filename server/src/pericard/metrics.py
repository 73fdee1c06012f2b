"""Every metric, in one place, in one registry that is passed in.

Rules of this room: counted in the engine, so that any number of edges is still one server; label values come
from closed sets (error codes, names of loaded models), never from a caller.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The daemon's metrics."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register everything in a registry of its own, or in the one given."""
        self.registry = own = registry or CollectorRegistry()
        self.build = Info("pericard_build", "Version of the daemon and digest of its runtime.", registry=own)
        self.environment = Info(
            "pericard_environment", "What was found of the installed runtime at the start, and its host.", registry=own
        )
        self.environment_findings = Gauge(
            "pericard_environment_findings", "What is not as it was locked, or gets into the process from elsewhere.",
            registry=own,
        )  # fmt: skip
        self.models_ready = Gauge("pericard_models_ready", "Models that can answer.", registry=own)
        self.requests = Counter(
            "pericard_requests", "Requests by outcome: ok, or an error code.", ["code"], registry=own
        )
        self.predictions = Counter(
            "pericard_predictions", "Predictions by model and status.", ["model", "status"], registry=own
        )
        self.queue_depth = Gauge("pericard_queue_depth", "Predictions that wait for the engine.", registry=own)
        self.queue_seconds = Histogram(
            "pericard_queue_seconds", "From the engine's acceptance to the batch.", buckets=_SECONDS, registry=own
        )
        self.batch_seconds = Histogram(
            "pericard_batch_seconds", "Forward pass of one batch.", buckets=_SECONDS, registry=own
        )
        self.batch_size = Histogram("pericard_batch_size", "Predictions in one batch.", buckets=_SIZES, registry=own)
        self.audit_commit_seconds = Histogram(
            "pericard_audit_commit_seconds", "Write and sync of one audit group.", buckets=_SECONDS, registry=own
        )
        self.audit_available = Gauge("pericard_audit_available", "1 while the audit log can be written.", registry=own)
        self.audit_size = Gauge("pericard_audit_size", "Records in the audit log.", registry=own)
        self.licence_days_left = Gauge(
            "pericard_licence_days_left", "Days until the licence ends; negative during grace.", ["model"], registry=own
        )
        self.weights_locked = Gauge(
            "pericard_weights_locked", "1 if the model's weights are locked in memory.", ["model"], registry=own
        )
        self.engine_confinement = Gauge(
            "pericard_engine_confinement", "1 if this layer keeps the engine in; by trying.", ["layer"], registry=own
        )
        self.model_loads = Counter(
            "pericard_model_loads", "Versions loaded or refused, by model and result: ok, or an error code.",
            ["model", "result"], registry=own,
        )  # fmt: skip
        self.known_answer_failures = Counter(
            "pericard_known_answer_failures", "Rounds of known answers that failed while the model was served.",
            ["model"], registry=own,
        )  # fmt: skip
        self.known_answers_passed = Gauge(
            "pericard_known_answers_passed_timestamp", "Unix time at which all known answers were right last.",
            ["model"], registry=own,
        )  # fmt: skip
        self.policy_loads = Counter(
            "pericard_policy_loads", "Policies taken or refused by an edge, by result: ok, or an error code.",
            ["result"], registry=own,
        )  # fmt: skip
        self.policy_refused = Gauge(
            "pericard_policy_refused", "1 while the policy on disk is refused, and the one before it in force.",
            registry=own,
        )  # fmt: skip

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
