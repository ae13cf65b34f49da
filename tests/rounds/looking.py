"""Records to look at, and an adapter in production that was trained on some of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import treering
from treering.evaluation import check
from treering.registry import Registry

TOPICS = {
    "refund": ["please", "send", "my", "money", "back", "for", "order", "it", "was", "broken", "and", "late", "again"],
    "login": [
        "i",
        "forgot",
        "the",
        "password",
        "of",
        "my",
        "account",
        "and",
        "the",
        "mail",
        "never",
        "came",
        "to",
        "me",
    ],
    "delivery": [
        "where",
        "is",
        "my",
        "parcel",
        "the",
        "driver",
        "said",
        "today",
        "but",
        "nobody",
        "rang",
        "at",
        "the",
        "door",
    ],
}


def tickets(n: int, *, seed: int, topics: Sequence[str] = ("refund", "login"), **fields: Any) -> list[dict[str, Any]]:
    """Labelled records, every tenth held out; ids and texts follow from the seed."""
    rng = random.Random(seed)
    made = []
    for i in range(n):
        label = rng.choice(topics)
        text = " ".join(rng.choices(TOPICS[label], k=rng.randint(6, 14))) + f" {rng.randrange(10**9)}"
        split = "heldout" if i % 10 == 0 else "train"
        made.append({"id": f"s{seed}-{i}", "split": split, "domain": "shop", "text": text, "label": label, **fields})
    return made


def capture(corpus: treering.Corpus, records: Sequence[Mapping[str, Any]], *, seal: bool = True) -> None:
    with corpus.capture() as live:
        receipts = live.extend(list(records))
    assert not receipts.refused
    if seal:
        corpus.snapshot()


def produce(store: treering.Store, corpus: str, trained_on: Sequence[str], **rows: Any) -> str:
    """An adapter in production; its ref."""
    registry = Registry(store, corpus)
    added = registry.add(card={"labels": ["a"]}, weights=b"0" * 64, trained_on=trained_on, **rows)
    registry.record_verdict(added.ref, check({"s": 0.9}, baseline=None))
    production = registry.state().production
    registry.record_verdict(added.ref, check({"s": 0.9}, baseline=production and f"{corpus}:{production}"))
    registry.promote(added.ref)
    return added.ref
