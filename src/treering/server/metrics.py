"""What /metrics tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from treering.server.limits import Budget
    from treering.server.writers import Writers

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, writers: Writers, budget: Budget) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("treering_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self.errors = Counter(
            "treering_request_errors",
            "Requests answered with an error, by its code.",
            ["code"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "treering_request_seconds",
            "From a request's header to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.spans = Counter(
            "treering_otlp_items",
            "Spans and log records received: content, without_content, refused.",
            ["corpus", "kind"],
            registry=self._registry,
        )
        held = Gauge("treering_queue_bytes", "Bytes of bodies under way.", registry=self._registry)
        held.set_function(lambda: budget.bytes)
        waiting = Gauge("treering_queue_requests", "Requests that wait to be stored.", registry=self._registry)
        waiting.set_function(lambda: budget.requests)
        self._registry.register(_Records(writers))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _Records(Collector):
    """Counts that the writers keep."""

    def __init__(self, writers: Writers) -> None:
        self._writers = writers

    def collect(self) -> Iterator[Metric]:
        answered = CounterMetricFamily(
            "treering_records", "Records answered, by what became of them.", labels=["corpus", "outcome"]
        )
        committed = CounterMetricFamily(
            "treering_committed_records", "Records committed to the table, by what became of them.",
            labels=["corpus", "outcome"],
        )  # fmt: skip
        waiting = GaugeMetricFamily(
            "treering_uncommitted_records", "Records on disk that readers don't see yet.", labels=["corpus"]
        )
        passed = CounterMetricFamily(
            "treering_passed_items", "Parts of conversations of which no record was made, by why.",
            labels=["corpus", "why"],
        )  # fmt: skip
        for writer in self._writers.all():
            name, tally, counts = writer.corpus.name, writer.tally, writer.counts
            for outcome, count in (
                ("stored", tally.stored), ("duplicate", tally.duplicates), ("refused", tally.refused),
                ("erased", tally.erased),
            ):  # fmt: skip
                answered.add_metric([name, outcome], count)
            for why, count in tuple(tally.passed.items()):
                passed.add_metric([name, why], count)
            if counts is None:
                continue
            done = counts.stored + counts.duplicates + counts.conflicts
            committed.add_metric([name, "stored"], counts.stored)
            committed.add_metric([name, "duplicate"], counts.duplicates)
            committed.add_metric([name, "conflict"], counts.conflicts)
            waiting.add_metric([name], max(0, counts.acknowledged - done))
        yield answered
        yield committed
        yield waiting
        yield passed
