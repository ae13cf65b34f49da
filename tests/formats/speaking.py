"""What the tests of importers share: feeding one, and real OpenTelemetry SDKs to write what they are fed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from treering.formats import Found, Importer, Passed, Unfit
from treering.schema import RecordType

CHAT = RecordType.of("chat")


class Taken:
    """What an importer made of its input: records by id, what was passed and how often, and what didn't fit."""

    def __init__(self, outcomes: Iterable[Found | Passed | Unfit]) -> None:
        self.found: list[Found] = []
        self.unfit: list[Unfit] = []
        self.passed: Counter[str] = Counter()
        for one in outcomes:
            if isinstance(one, Found):
                self.found.append(one)
            elif isinstance(one, Unfit):
                self.unfit.append(one)
            else:
                self.passed[one.why] += 1
        checked = CHAT.validate([one.record for one in self.found])
        assert checked.refused == []

    @property
    def records(self) -> list[dict[str, Any]]:
        return [one.record for one in self.found]

    @property
    def one(self) -> dict[str, Any]:
        assert len(self.found) == 1, (self.records, self.passed, self.unfit)
        return self.found[0].record

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.one["messages"]

    @property
    def said(self) -> list[tuple[dict[str, Any], ...]]:
        return [one.annotations for one in self.found]


def take(importer: type[Importer], values: Iterable[Any]) -> Taken:
    """Feed values, a line each, and finish."""

    def outcomes() -> Iterator[Any]:
        one = importer(CHAT, "/data/trace.jsonl")
        for line, value in enumerate(values, start=1):
            yield from one.feed(line, value, json.dumps(value, default=repr).encode())
        yield from one.finish()

    return Taken(outcomes())


class Traced:
    """An OpenTelemetry SDK that keeps what it would export, and gives it as OTLP's exporters would write it."""

    def __init__(self) -> None:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        resource = Resource.create({"service.name": "helpdesk"})
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider(resource=resource)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._logs = InMemoryLogRecordExporter()
        self.loggers = LoggerProvider(resource=resource)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.tracer = self.tracers.get_tracer("helpdesk")

    @contextmanager
    def span(self, name: str = "chat", **attributes: Any) -> Iterator[Any]:
        with self.tracer.start_as_current_span(name) as span:
            for key, value in attributes.items():
                span.set_attribute(key, value)
            yield span

    def record(self, attributes: dict[str, Any], name: str = "chat") -> None:
        """A finished span with these attributes, in a trace of its own."""
        from opentelemetry.context import Context

        span = self.tracer.start_span(name, context=Context())
        for key, value in attributes.items():
            span.set_attribute(key, value)
        span.end()

    def spans_message(self) -> Any:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        return encode_spans(self._spans.get_finished_spans())

    def logs_message(self) -> Any:
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

        return encode_logs(self._logs.get_finished_logs())

    def spans_json(self) -> Any:
        return hexed(self.spans_message())

    def logs_json(self) -> Any:
        return hexed(self.logs_message())


def hexed(message: Any) -> Any:
    """A protobuf message in OTLP's JSON form: protobuf's own, with ids in hex."""
    from google.protobuf.json_format import MessageToDict

    def fix(value: Any) -> Any:
        import base64

        if isinstance(value, dict):
            return {
                key: base64.b64decode(inner).hex() if key in ("traceId", "spanId", "parentSpanId") else fix(inner)
                for key, inner in value.items()
            }
        return [fix(inner) for inner in value] if isinstance(value, list) else value

    return fix(MessageToDict(message))
