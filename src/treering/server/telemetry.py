"""OpenTelemetry's exporters and the hooks of coding agents: what they send is on disk before they hear so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, Response
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from pydantic_core import to_json

from treering.errors import UsageError
from treering.formats.base import Unfit
from treering.formats.genai import EMPTY, calls_of, words_of
from treering.formats.hooks import Hooks
from treering.formats.otlp import Otlp, Signal, spans_of
from treering.formats.shapes import MisfitError
from treering.schema import parse_json
from treering.server.held import Piece
from treering.server.limits import Limits, Refusal
from treering.server.requests import Allowed, CorpusHeader, media_of, parsed, service_of, taken

if TYPE_CHECKING:
    from treering.schema import RecordType

__all__ = ["Received", "add_telemetry", "read_export", "sort_signals"]

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
#: Events after which the record of a turn is complete.
_ENDS = frozenset({"Stop", "StopFailure", "SessionEnd"})
_HINT = "switch content capture on: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true, or as the SDK calls it"

Kind = Literal["traces", "logs"]


@dataclass(slots=True)
class Received:
    """What an export holds: pieces to keep, what doesn't fit, and how many there were of each kind."""

    items: int = 0
    with_content: int = 0
    without_content: int = 0
    pieces: list[Piece] = field(default_factory=list)
    misfits: list[Unfit] = field(default_factory=list)

    def says(self, what: str) -> str:
        """A word to who sent it, when content is missing or doesn't fit; "" otherwise."""
        parts = []
        if self.without_content or (self.items and not (self.with_content or self.pieces or self.misfits)):
            parts.append(f"{self.with_content} of {self.items} {what} had content: {_HINT}")
        if self.misfits:
            parts.append(f"{len(self.misfits)} didn't fit and are in quarantine: {self.misfits[0].problems[0]}")
        return "; ".join(parts)


def read_export(body: bytes, media: str, kind: Kind, limits: Limits) -> list[Signal]:
    """The spans or log records of an export request. Raises Refusal when it can't be read."""
    message: Any = ExportTraceServiceRequest() if kind == "traces" else ExportLogsServiceRequest()
    request: Any
    if media in (PROTOBUF, "application/protobuf"):
        try:
            message.ParseFromString(body)
        except DecodeError as exc:
            raise Refusal(400, "bad-protobuf", f"the body isn't an OTLP export of {kind}: {exc}") from exc
        request = message
    elif media == JSON:
        try:
            request = parse_json(body)
        except ValueError as exc:
            raise Refusal(400, "bad-json", f"the body isn't JSON: {exc}") from exc
        if not isinstance(request, dict):
            raise Refusal(400, "bad-otlp", "the body isn't an OTLP export: expected an object")
    else:
        raise Refusal(415, "bad-media-type", f"can't read {media[:80]!r}", f"send {PROTOBUF} or {JSON}")
    found: list[Signal] = []
    try:
        for signal in spans_of(request):
            found.append(signal)
            if len(found) > limits.max_records:
                raise Refusal(413, "too-many", f"more than {limits.max_records:,} in one request", "smaller batches")
    except (ValueError, RecursionError) as exc:
        raise Refusal(400, "bad-otlp", f"the body isn't an OTLP export: {exc}") from exc
    return found


def sort_signals(signals: Sequence[Signal], target: RecordType) -> Received:
    """What each is: a part of a conversation, a score, nothing to us, or content that can't be meant."""
    received = Received(len(signals))
    for signal in signals:
        try:
            made = calls_of(signal, 1, 1)
            words = [target for target, _ in words_of(signal)]
        except MisfitError:
            said = Otlp(target, None).take(1, signal, 0)
            received.misfits += [one for one in said if isinstance(one, Unfit)]
            continue
        trace = signal["trace_id"] or ""
        if isinstance(made, str):
            received.without_content += made == EMPTY
            if words:
                received.pieces.append(Piece("otlp", "", trace, signal))
            continue
        received.with_content += 1
        received.pieces.append(Piece("otlp", made[0].conversation, trace, signal))
    return received


def add_telemetry(app: FastAPI) -> None:
    """Put the routes in."""

    async def held(request: Request, access: Allowed, corpus: str | None, kind: Kind) -> Response:
        service = service_of(request)
        name = await service.corpus_for(access, corpus)
        access.require("capture", name)
        writer = await service.writer(name)
        _check_target(writer.corpus.record_type)
        media = media_of(request)
        async with taken(request) as body:

            def read() -> Received:
                return sort_signals(read_export(body, media, kind, service.limits), writer.corpus.record_type)

            received = await parsed(service, body, read)
            await service.answered(writer.hold(received.pieces, received.misfits))
        for label, count in (
            ("content", received.with_content),
            ("without_content", received.without_content),
            ("refused", len(received.misfits)),
            ("other", received.items - received.with_content - received.without_content - len(received.misfits)),
        ):
            service.metrics.spans.labels(name, label).inc(count)
        return _answer(received, kind, media)

    body_schema = {
        "requestBody": {
            "required": True,
            "content": {media: {"schema": {"type": "object"}} for media in (PROTOBUF, JSON)},
        }
    }

    @app.post("/v1/traces", tags=["telemetry"], openapi_extra=body_schema)
    async def traces(request: Request, access: Allowed, corpus: CorpusHeader = None) -> Response:
        """OTLP/HTTP: spans with GenAI, OpenInference or older attributes become conversations."""
        return await held(request, access, corpus, "traces")

    @app.post("/v1/logs", tags=["telemetry"], openapi_extra=body_schema)
    async def logs(request: Request, access: Allowed, corpus: CorpusHeader = None) -> Response:
        """OTLP/HTTP: events with the details of model calls, and scores."""
        return await held(request, access, corpus, "logs")

    async def hooked(request: Request, access: Allowed, corpus: str | None) -> Response:
        service = service_of(request)
        name = await service.corpus_for(access, corpus)
        access.require("capture", name)
        writer = await service.writer(name)
        _check_target(writer.corpus.record_type)
        async with taken(request) as body:
            pieces, ended = _payloads(body, media_of(request))
            await service.answered(writer.hold(pieces, [], ended))
        return Response(b"{}", media_type=JSON)  # what a hook answers steers the agent: nothing does here

    hook_schema = {"requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}}

    @app.post("/v1/hooks/claude-code", tags=["telemetry"], openapi_extra=hook_schema)
    async def claude_code(request: Request, access: Allowed, corpus: CorpusHeader = None) -> Response:
        """What a hook of Claude Code posts; a turn becomes a record when it ends. Always answers {}."""
        return await hooked(request, access, corpus)

    @app.post("/v1/hooks/codex", tags=["telemetry"], openapi_extra=hook_schema)
    async def codex(request: Request, access: Allowed, corpus: CorpusHeader = None) -> Response:
        """What a hook of Codex posts; a turn becomes a record when it ends. Always answers {}."""
        return await hooked(request, access, corpus)


def _payloads(body: bytes, media: str) -> tuple[list[Piece], list[str]]:
    """The payloads of hooks, one or an array, and the sessions whose turn has ended. Raises Refusal."""
    if media != JSON:
        raise Refusal(415, "bad-media-type", f"can't read {media[:80]!r}", f"send {JSON}")
    try:
        value = parse_json(body)
    except ValueError as exc:
        raise Refusal(400, "bad-json", f"the body isn't JSON: {exc}") from exc
    given = value if isinstance(value, list) else [value]
    for one in given:
        if not Hooks.recognises(one) or not isinstance(one["session_id"], str) or not one["session_id"]:
            raise Refusal(
                400, "bad-hook", "this isn't the payload of a hook", "it has hook_event_name and session_id, both text"
            )
    pieces = [Piece("hooks", one["session_id"], "", one) for one in given]
    return pieces, [one["session_id"] for one in given if one["hook_event_name"] in _ENDS]


def _check_target(record_type: Any) -> None:
    """Raise Refusal for a corpus that conversations don't fit."""
    try:
        Otlp(record_type, None)
    except UsageError as exc:
        raise Refusal(400, "wrong-record-type", exc.message, exc.hint) from exc
    if record_type.name != "chat":
        raise Refusal(
            400, "wrong-record-type", f"telemetry becomes chat records, and this corpus has {record_type.name} records",
            "treering create NAME --schema chat",
        )  # fmt: skip


def _answer(received: Received, kind: Kind, media: str) -> Response:
    what = "spans" if kind == "traces" else "log records"
    rejected, says = len(received.misfits), received.says(what)
    if media == JSON:
        partial = {}
        if says:
            partial = {f"rejected{'Spans' if kind == 'traces' else 'LogRecords'}": str(rejected), "errorMessage": says}
        return Response(to_json({"partialSuccess": partial}), media_type=JSON)
    answer: Any = ExportTraceServiceResponse() if kind == "traces" else ExportLogsServiceResponse()
    if says:
        answer.partial_success.error_message = says
        setattr(answer.partial_success, "rejected_spans" if kind == "traces" else "rejected_log_records", rejected)
    return Response(answer.SerializeToString(), media_type=PROTOBUF)
