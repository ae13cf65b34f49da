"""`treering keys`: who may write to the server, and read from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, facts, render, say, when

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.server.keys import KeyState

__all__ = ["app", "create", "list_", "revoke"]

app = typer.Typer(
    name="keys",
    add_completion=False,
    rich_markup_mode=None,
    help="Make, list and revoke the keys of `treering serve`.",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class KeyView:
    """A key, without the key."""

    id: str
    status: str
    note: str
    corpora: list[str]
    verbs: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class NewKey(KeyView):
    """A key that was just made; `token` is what to send, and is never shown again."""

    token: str


def _fields(state: KeyState) -> dict[str, object]:
    key = state.key
    return {
        "id": key.id,
        "status": state.status(datetime.now(UTC)),
        "note": key.note,
        "corpora": list(key.corpora),
        "verbs": list(key.verbs),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": state.revoked_at,
    }


@app.command("create")
def create(
    corpus: Annotated[
        list[str], typer.Option("--corpus", metavar="NAME", help="What it is good for; several times, or '*' for all.")
    ],
    verbs: Annotated[
        str, typer.Option(metavar="V,V", help="capture, annotate, read, metrics.")
    ] = "capture,annotate,read",
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="90d, 12h, or 2027-01-31 [default: never].")
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Whose it is, or what for.")] = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key and show it, once: the store keeps its hash alone.

    Send it as `Authorization: Bearer KEY`. Servers that run know it at once.

    API: treering.server.keys.create_key.
    """
    from treering.server.keys import KeyState, create_key, parse_expiry

    until = parse_expiry(expires) if expires else None
    given = [verb.strip() for verb in verbs.split(",") if verb.strip()]
    made, token = create_key(open_store(store), corpus, verbs=given, expires_at=until, note=note)
    view = NewKey(**_fields(KeyState(made, None)), token=token)  # type: ignore[arg-type]
    render(view, json, lambda: token)
    say(f"key {made.id} for {', '.join(made.corpora)}: {', '.join(made.verbs)}; keep it, it isn't shown again")


@app.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List all keys, those that are good for nothing any more too.

    API: treering.server.keys.list_keys.
    """
    from treering.server.keys import list_keys

    views = [KeyView(**_fields(state)) for state in list_keys(open_store(store))]  # type: ignore[arg-type]
    render(views, json, lambda: _table(views) if views else "no keys yet; make one: treering keys create --corpus NAME")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key worthless for good. Servers that run refuse it within 2 seconds.

    API: treering.server.keys.revoke_key.
    """
    from treering.server.keys import revoke_key

    view = KeyView(**_fields(revoke_key(open_store(store), key)))  # type: ignore[arg-type]
    render(view, json, lambda: facts([("revoked", view.id), ("was for", ", ".join(view.corpora))]))


def _table(views: list[KeyView]) -> RenderableType:
    rows = [
        (
            view.id,
            view.status,
            ", ".join(view.corpora),
            ", ".join(view.verbs),
            when(view.expires_at) if view.expires_at else "never",
            view.note or None,
        )
        for view in views
    ]
    return columns(["id", "status", "corpora", "verbs", "expires", "note"], rows)
