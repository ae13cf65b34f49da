"""The routes: parse, ask once, answer. What they share is `Service`; around them stands `Guard`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException

import treering
from treering.errors import TreeringError
from treering.server.bodies import ARROW, JSON, NDJSON, Given, identify, parse_records
from treering.server.guard import Guard, error_response
from treering.server.keys import EVERY_CORPUS
from treering.server.limits import Limits, Refusal
from treering.server.page import add_page
from treering.server.requests import ERRORS, Allowed, Failed, Name, media_of, parsed, service_of, taken
from treering.server.service import Service, status_of
from treering.server.telemetry import add_telemetry
from treering.server.writers import Outcome

if TYPE_CHECKING:
    from treering.front import Store

__all__ = ["create_app"]

logger = logging.getLogger("treering.server")


class ProblemModel(BaseModel):
    """One thing that is wrong with a record."""

    loc: list[str | int]
    kind: str
    message: str


class OutcomeModel(BaseModel):
    """What became of one record; in the order they were sent."""

    id: str | None = Field(description="Its id, the one that the server gave it if it had none.")
    status: str = Field(description="stored, duplicate, refused (it is in quarantine) or erased (dropped).")
    problems: list[ProblemModel] | None = None


class Stored(BaseModel):
    """Answer to records. 200: each has been dealt with for good; 422: the same, and none was taken."""

    stored: int
    duplicates: int
    refused: int
    erased: int
    records: list[OutcomeModel]


class Said(BaseModel):
    """Answer to annotations."""

    stored: int = Field(description="Words: one per record and key.")


def create_app(store: Store, *, limits: Limits | None = None, needs_keys: bool = False) -> FastAPI:
    """The ASGI application over a store; its `state.service` is to be closed when it has served.

    `needs_keys`: requests need a key even if none was made yet.
    """
    bounds = limits or Limits()

    service = Service(store, bounds, needs_keys=needs_keys)
    app = FastAPI(
        title="treering",
        version=treering.__version__,
        description="Capture for live agents: what was answered with 200 is on disk.",
        docs_url=None,  # their pages fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(TreeringError, _failed)
    app.add_exception_handler(HTTPException, _unroutable)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    _add_writing(app)
    _add_reading(app)
    add_telemetry(app)
    add_page(app)
    app.add_middleware(Guard, service=service)
    return app


# --- in --------------------------------------------------------------------------------------------------------------


def _add_writing(app: FastAPI) -> None:
    record_body = {
        "requestBody": {
            "required": True,
            "content": {
                JSON[0]: {"schema": {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]}},
                NDJSON[0]: {"schema": {"type": "string"}},
                ARROW[0]: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }

    @app.post(
        "/v1/corpora/{name}/records",
        tags=["capture"],
        responses={200: {"model": Stored}, 422: {"model": Stored}, **ERRORS},
        openapi_extra=record_body,
    )
    async def capture_records(
        name: Name,
        request: Request,
        access: Allowed,
        idempotency_key: Annotated[
            str | None,
            Header(max_length=200, description="Ids of records without one come from this and their position."),
        ] = None,
    ) -> Response:
        """Capture records. Answered once they are on disk, or in quarantine with what is wrong with them."""
        access.require("capture", name)
        service = service_of(request)
        writer = await service.writer(name)
        async with taken(request) as body:
            media = media_of(request)

            def read() -> Given:
                given = parse_records(body, media, service.limits)
                identify(given, name, idempotency_key)
                return given

            given = await parsed(service, body, read)
            outcomes = await service.answered(writer.submit(given, "http"))
        return _stored(outcomes)

    @app.post(
        "/v1/corpora/{name}/annotations",
        tags=["capture"],
        responses={
            200: {"model": Said},
            422: {"model": Failed, "description": "Something is wrong with a row."},
            **ERRORS,
        },
        openapi_extra=record_body,
    )
    async def annotate(name: Name, request: Request, access: Allowed) -> Response:
        """Say something about records by id: label, outcome, quality, correction, exclude, intents, by, note. All or none."""
        access.require("annotate", name)
        service = service_of(request)
        writer = await service.writer(name)
        async with taken(request) as body:
            given = await _records(service, body, media_of(request))
            if given.unread:
                first = given.unread[0]
                raise Refusal(400, "bad-json", f"line {first.position + 1}: {first.problem.message}")
            rows = given.records if given.table is None else given.table
            count = await service.answered(writer.call(lambda _: writer.corpus.annotate_many(rows)))
        return Response(to_json({"stored": count}), media_type=JSON[0])


async def _records(service: Service, body: bytes, media: str) -> Given:
    return await parsed(service, body, lambda: parse_records(body, media, service.limits))


def _stored(outcomes: Sequence[Outcome]) -> Response:
    found = [one.status for one in outcomes]
    records = [
        {"id": one.id, "status": one.status, "problems": one.problems}
        if one.problems
        else {"id": one.id, "status": one.status}
        for one in outcomes
    ]
    answer = {
        "stored": found.count("stored"),
        "duplicates": found.count("duplicate"),
        "refused": found.count("refused"),
        "erased": found.count("erased"),
        "records": records,
    }
    status = 422 if outcomes and found.count("refused") == len(found) else 200
    return Response(to_json(answer), status, media_type=JSON[0])


# --- out -------------------------------------------------------------------------------------------------------------


def _add_reading(app: FastAPI) -> None:
    @app.get("/v1/corpora", tags=["read"], responses=ERRORS)
    async def corpora(request: Request, access: Allowed) -> Response:
        """The corpora that the key is good for."""
        service = service_of(request)
        if not access.allows("read"):
            access.require("read")

        def look() -> list[dict[str, Any]]:
            return [
                {
                    "name": one.name,
                    "record_type": one.record_type.name,
                    "heldout": one.record.heldout,
                    "created_at": one.record.created_at,
                    "snapshots": len(one.snapshots()),
                }
                for one in service.store.corpora()
                if access.allows("read", one.name)
            ]

        return _answer(await service.read(look))

    @app.get("/v1/corpora/{name}", tags=["read"], responses=ERRORS)
    async def corpus(name: Name, request: Request, access: Allowed) -> Response:
        """One corpus and the JSON Schema of its records."""
        access.require("read", name)
        service = service_of(request)

        def look() -> dict[str, Any]:
            found = service.store.corpus(name)
            return {
                "name": found.name,
                "record_type": found.record_type.name,
                "heldout": found.record.heldout,
                "group_by": found.record.group_by,
                "created_at": found.record.created_at,
                "schema_version": found.versions[-1].number,
                "schema": found.record_type.json_schema(),
            }

        return _answer(await service.read(look))

    @app.get("/v1/corpora/{name}/snapshots", tags=["read"], responses=ERRORS)
    async def snapshots(name: Name, request: Request, access: Allowed) -> Response:
        """Its snapshots, oldest first."""
        access.require("read", name)
        service = service_of(request)

        def look() -> list[dict[str, Any]]:
            return [
                {
                    "name": one.name,
                    "ref": one.ref,
                    "rows": one.rows,
                    "created_at": one.created_at,
                    "message": one.message,
                    "parent": one.parent,
                }
                for one in service.store.corpus(name).snapshots()
            ]

        return _answer(await service.read(look))

    @app.get("/v1/corpora/{name}/head", tags=["read"], responses=ERRORS)
    async def head(
        name: Name,
        request: Request,
        access: Allowed,
        n: Annotated[int, Query(ge=0, le=1_000, description="How many records.")] = 5,
        of: Annotated[str, Query(max_length=100, description="live, v1, v1..v3 or new.")] = "live",
    ) -> Response:
        """The first records of live, or of a snapshot, as an array."""
        access.require("read", name)
        service = service_of(request)

        def look() -> list[dict[str, Any]]:
            if "#" in of or "/" in of:  # a ref may name another store, or a selection
                raise Refusal(400, "bad-ref", f"{of!r} isn't a part of {name}", "live, v1, v1..v3 or new")
            source = service.store.load(f"{service.store.corpus(name).name}@{of}")
            rows = (
                row
                for batch in source.scan()
                for s in range(0, len(batch), 64)
                for row in batch.slice(s, 64).to_pylist()
            )
            return list(islice(rows, n))

        return _answer(await service.read(look))

    @app.get("/v1/corpora/{name}/status", tags=["read"], responses=ERRORS)
    async def status(name: Name, request: Request, access: Allowed) -> Response:
        """Where it stands and whether it is time for a round: what `treering status NAME --json` says."""
        access.require("read", name)
        service = service_of(request)
        return _answer(await service.read(lambda: treering.status(service.store, name)))

    @app.get(
        "/health",
        tags=["server"],
        responses={503: {"description": "Stopping: it takes nothing new; or failed: a corpus' writer has ended."}},
    )
    async def health(request: Request) -> Response:
        """Whether the server takes requests. Needs no key and tells nothing of the store."""
        service = service_of(request)
        state = "stopping" if service.draining else "failed" if service.writers.failed else "ok"
        told = {
            "status": state,
            "version": treering.__version__,
            "uptime_s": round(time.monotonic() - service.started, 1),
        }
        return Response(to_json(told), 200 if state == "ok" else 503, media_type=JSON[0])

    @app.get("/metrics", tags=["server"], responses=ERRORS)
    async def metrics(request: Request, access: Allowed) -> Response:
        """Prometheus' text format. Needs a key for all corpora with the verb `metrics` once there are keys."""
        access.require("metrics", EVERY_CORPUS)  # it tells of all of them
        return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _answer(value: Any) -> Response:
    return Response(to_json(value, inf_nan_mode="null", bytes_mode="base64"), media_type=JSON[0])


# --- errors ----------------------------------------------------------------------------------------------------------


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    return error_response(request.scope, exc.status, exc.code, exc.message, exc.hint, retry_after_s=exc.retry_after_s)


async def _failed(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, TreeringError)
    status, retry = status_of(exc)
    if status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, exc)
    return error_response(request.scope, status, exc.code, exc.message, exc.hint, retry_after_s=retry)


async def _unroutable(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    codes = {404: "no-route", 405: "bad-method"}
    hint = "GET /openapi.json lists the routes"
    headers = dict(exc.headers or {})
    code = codes.get(exc.status_code, "bad-request")
    return error_response(request.scope, exc.status_code, code, str(exc.detail), hint, headers=headers)


async def _bad_parameters(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return error_response(
        request.scope, 400, "bad-parameter", f"{where}: {first['msg']}", "GET /openapi.json says what it takes"
    )
