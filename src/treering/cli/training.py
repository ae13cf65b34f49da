"""`treering train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli.adapters import AdapterView, adapter_facts
from treering.cli.mix import RefsArgument, build, save_lock
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import render, say, stages
from treering.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from treering import TrainConfig

__all__ = ["train"]


def train(
    refs: RefsArgument = None,
    lock: Annotated[
        str | None, typer.Option(metavar="FILE", help="Train on this mix lock; with REFs: write the run's lock here.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="TOML with fields of TrainConfig.")] = None,
    strategy: Annotated[str | None, typer.Option(help="naive, replay or joint [default: replay].")] = None,
    base: Annotated[str | None, typer.Option(help='The frozen encoder: "minilm", a directory, a hub name.')] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer updates.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records of one update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the mix and of the training [default: 0].")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="Start from this adapter; `none` starts from scratch.")
    ] = None,
    track: Annotated[
        str | None, typer.Option(metavar="KIND:WHERE", help="Tell a tracker, too: mlflow:URI or trackio:PROJECT.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Train an adapter on a mix; it becomes a candidate.

    API: treering.train.
    """
    if not refs and not lock:
        raise UsageError("train needs a mix", code="no-sources", hint="name sources (REF=W …), or give --lock FILE")
    settings = _config(config, strategy=strategy, base=base, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    from treering import MixLock, rounds

    opened = open_store(store)
    recipe = build(opened, refs, seed=settings.seed) if refs else MixLock.load(str(lock))
    options: dict[str, Any] = {} if parent is None else {"parent": None if parent == "none" else parent}
    with stages({"read": "reading the mix", "train": "training"}) as progress:
        run = rounds.train(opened, recipe, settings, track=track, progress=progress, **options)
    if refs and lock:
        save_lock(run.lock, lock)
        say(f"wrote the lock to {lock}")
    view = AdapterView.of(run.adapter)
    render(view, json, lambda: adapter_facts(view))
    say(f"next: treering gate {view.ref}")


def _config(path: str | None, **given: Any) -> TrainConfig:
    """The config of a TOML file with the options that were given on top. Raises UsageError, NotFoundError."""
    import tomllib
    from pathlib import Path

    from treering import TrainConfig

    fields: dict[str, Any] = {}
    if path is not None:
        try:
            fields = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no training config at {path}", code="no-file") from exc
        except (OSError, ValueError) as exc:
            raise UsageError(f"can't read {path}: {exc}", code="bad-config") from exc
    fields.update((name, value) for name, value in given.items() if value is not None)
    return TrainConfig(**fields)
