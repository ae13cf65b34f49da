"""`treering train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.adapters import AdapterView, adapter_facts
from treering.cli.mix import RefsArgument, build, save_lock
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import render, say, stages
from treering.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from treering import Store, TrainConfig

__all__ = ["train", "train_config"]


def train(
    refs: RefsArgument = None,
    lock: Annotated[
        str | None, typer.Option(metavar="FILE", help="Train on this mix lock; with REFs: write the run's lock here.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="TOML with fields of TrainConfig.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How to train, e.g. replay, joint, lora-replay [default: recommended].")
    ] = None,
    base: Annotated[str | None, typer.Option(help='The frozen base: "minilm", a directory, a hub name.')] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer updates.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records of one update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the mix and of the training [default: 0].")] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Start from this adapter; `none` starts from scratch.",
            autocompletion=completion.adapters,
        ),
    ] = None,
    only_gate: Annotated[
        str | None,
        typer.Option("--only-gate", metavar="DOMAIN", help="Touch up the parent: this domain's gates alone."),
    ] = None,
    only_head: Annotated[bool, typer.Option("--only-head", help="Touch up the parent: its head alone.")] = False,
    eval_every: Annotated[
        int | None,
        typer.Option("--eval-every", metavar="N", help="Look at past slices every N updates; a drop ends the run."),
    ] = None,
    track: Annotated[
        str | None, typer.Option(metavar="KIND:WHERE", help="Tell a tracker, too: mlflow:URI or trackio:PROJECT.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Train an adapter on a mix; it becomes a candidate.

    With --parent ADAPTER and without --config, settings are those that the parent was trained with, but for the options given.

    API: treering.train.
    """
    if not refs and not lock:
        raise UsageError("train needs a mix", code="no-sources", hint="name sources (REF=W …), or give --lock FILE")
    if only_head and only_gate is not None:
        raise UsageError("--only-head and --only-gate exclude each other", code="bad-argument", hint="leave one out")
    only = "head" if only_head else None if only_gate is None else f"gate:{only_gate}"
    opened = open_store(store)
    inherited = {} if parent is None or parent == "none" or config else _inherited(opened, parent, strategy)
    settings = train_config(
        config,
        inherited,
        strategy=strategy,
        base=base,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        only=only,
        eval_every=eval_every,
    )
    from treering import MixLock, rounds

    recipe = build(opened, refs, seed=settings.seed) if refs else MixLock.load(str(lock))
    options: dict[str, Any] = {} if parent is None else {"parent": None if parent == "none" else parent}
    with stages({"read": "reading the mix", "train": "training"}) as progress:
        run = rounds.train(opened, recipe, settings, track=track, progress=progress, **options)
    if refs and lock:
        save_lock(run.lock, lock)
        say(f"wrote the lock to {lock}")
    if run.stopped is not None:
        say(f"stopped early: {run.stopped}")
    view = AdapterView.of(run.adapter)
    render(view, json, lambda: adapter_facts(view))
    say(f"next: treering gate {view.ref}")


# What an adapter and those that continue from it have in common whatever the strategy; its shape follows from its weights.
_COMMON = ("base", "precision", "max_tokens")


def _inherited(store: Store, parent: str, chosen: str | None) -> dict[str, Any]:
    """The config that a parent was trained with, as far as its children share it; of another strategy, its base alone."""
    from treering.registry import Registry
    from treering.training import strategy

    fields = dict(Registry.of(store, parent).get(parent).config)
    theirs = fields.get("strategy")
    if theirs is None or chosen not in (None, theirs) or not strategy(theirs).continues:
        return {name: value for name, value in fields.items() if name in _COMMON}
    return {name: value for name, value in fields.items() if name not in ("only", "eval_every")}


def train_config(path: str | None, inherited: dict[str, Any], **given: Any) -> TrainConfig:
    """The config of a TOML file, or what is inherited, with the options that were given on top.

    Raises UsageError, NotFoundError.
    """
    import tomllib
    from pathlib import Path

    from treering import TrainConfig

    fields: dict[str, Any] = dict(inherited)
    if path is not None:
        try:
            fields = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no training config at {path}", code="no-file") from exc
        except (OSError, ValueError) as exc:
            raise UsageError(f"can't read {path}: {exc}", code="bad-config") from exc
    fields.update((name, value) for name, value in given.items() if value is not None)
    return TrainConfig(**fields)
