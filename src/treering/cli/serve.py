"""`treering serve`: live agents in, over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import render, say
from treering.errors import UsageError

__all__ = ["serve"]

_MIB = 1 << 20


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Beyond this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0 takes a free one.")] = 8321,
    max_body_mb: Annotated[int, typer.Option(min=1, max=1_024, metavar="MB", help="Of one request.")] = 16,
    queue_mb: Annotated[int, typer.Option(min=1, metavar="MB", help="Of requests under way; beyond it 503.")] = 256,
    queue_requests: Annotated[int, typer.Option(min=1, metavar="N", help="That wait for the disk.")] = 1_024,
    max_connections: Annotated[int, typer.Option(min=1, metavar="N", help="At once.")] = 4_096,
    hold_s: Annotated[
        float, typer.Option(min=0, metavar="S", help="A conversation is complete when nothing came for so long.")
    ] = 30.0,
    drain_s: Annotated[float, typer.Option(min=0, metavar="S", help="For requests under way at SIGTERM.")] = 30.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Take records, telemetry and hooks over HTTP until SIGTERM.

    Annotations too; see docs/server.md. What is answered with 200 is on disk. Prints its URL once it takes requests.

    API: treering.server.run.serve.
    """
    opened = open_store(store)
    try:
        from treering.server.limits import Limits
        from treering.server.run import serve as run
    except ImportError as exc:
        raise UsageError(
            f"the server needs the extra `server`: {exc}", code="missing-extra", hint="pip install 'treering[server]'"
        ) from exc
    limits = Limits(
        max_body=max_body_mb * _MIB,
        max_decoded=4 * max_body_mb * _MIB,
        queue_bytes=queue_mb * _MIB,
        queue_requests=queue_requests,
        max_connections=max_connections,
        hold_s=hold_s,
        drain_s=drain_s,
    )

    def ready(url: str) -> None:
        render({"url": url, "store": opened.uri}, json, lambda: url)
        say(f"serving {opened.uri}; SIGTERM ends it")

    run(opened, host, port, limits=limits, ready=ready)
