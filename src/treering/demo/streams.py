"""Real data as a stream of rounds: dialogues from the package `chatterbot-corpus`, or CLINC150 from a file or URL.

Gives records ready for `capture()`. Does not store, train or draw them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from treering.demo.clinc150_domains import CLINC150_DOMAINS
from treering.errors import NotFoundError, UsageError

__all__ = ["Round", "Stream", "clinc150", "dialogues", "read_json"]

# Categories with fewer than 20 distinct exchanges or fewer than 10 conversations are left out: macro-F1 over a handful
# of held-out rows says nothing, and a conversation can't be split. (tech_support has 1,050 conversations, but only ten
# different ones.) What is left is told by theme, so that a round brings something new, as a product launch would.
THEMES: dict[str, tuple[str, ...]] = {
    "technology": ("ai", "coding", "computers"),
    "people": ("conversations", "emotion", "greetings", "psychology"),
    "leisure": ("literature", "money", "movies", "sports"),
    "knowledge": ("science", "trivia"),
}


@dataclass(frozen=True, slots=True)
class Round:
    """What arrives between two snapshots: `labelled` records of one domain, in the order they are captured."""

    domain: str
    records: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """Rounds in order. `heldout`: the share of conversations to hold out, 0 when the records say their split."""

    name: str
    about: str
    rounds: tuple[Round, ...]
    heldout: float


def dialogues() -> Stream:
    """Four rounds of exchanges (a line and its reply) from chatterbot-corpus, the category as label.

    Each exchange comes once, though the corpus repeats many. Conversations that open with the same line share a
    `session_id`, so none of them straddles training and held-out records. Raises UsageError when a package is missing.
    """
    try:
        from importlib.resources import files

        import yaml

        folder = files("chatterbot_corpus") / "data" / "english"
    except ImportError as exc:
        raise UsageError(
            "the demo's dialogues aren't installed", code="missing-extra", hint="pip install 'treering[demo,train]'"
        ) from exc
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # base: "Yes." is a line, not a boolean
    seen: set[str] = set()
    rounds = []
    for domain, categories in THEMES.items():
        records = []
        for category in categories:
            text = (folder / f"{category}.yml").read_text(encoding="utf-8")
            for conversation in yaml.load(text, Loader=loader)["conversations"]:  # noqa: S506  (base: strings only)
                session = _normal(conversation[0])
                for line, reply in pairwise(conversation):
                    key = f"{_normal(line)}\n{_normal(reply)}"
                    if key in seen:
                        continue
                    seen.add(key)
                    records.append(
                        {
                            "id": f"chatterbot-{hashlib.sha256(key.encode()).hexdigest()[:16]}",
                            "session_id": f"{category}/{session}",
                            "domain": domain,
                            "origin": "human",
                            "text": f"{line.strip()}\n{reply.strip()}",
                            "label": category,
                        }
                    )
        # Conversations of all categories of a round arrive mixed, as they would; a hash, because it needs no seed.
        records.sort(key=lambda record: hashlib.sha256(record["session_id"].encode()).digest())
        rounds.append(Round(domain, tuple(records)))
    # Half is held out: the corpus is small, and a slice of a few dozen records can't tell forgetting from luck.
    return Stream("dialogues", "exchanges from chatterbot-corpus, their category as label", tuple(rounds), heldout=0.5)


def clinc150(
    source: str,
    *,
    domains: Mapping[str, Sequence[str]] | None = None,
    order: Sequence[str] | None = None,
    heldout: str = "test",
    limit: int | None = None,
) -> Stream:
    """CLINC150's domains as rounds: its training sentences, and those of another split as held-out records.

    source: `data_full.json`, a path or any fsspec URL. domains: intents by domain, the standard ten when left out.
    order: of the domains. heldout: "test", or "val" to choose hyperparameters on. limit: at most so many training
    sentences an intent. Raises NotFoundError when the file isn't there, UsageError when it is something else.
    """
    data = read_json(source)
    wanted = CLINC150_DOMAINS if domains is None else domains
    names = list(wanted) if order is None else list(order)
    if sorted(names) != sorted(wanted):
        raise UsageError(f"the order must name each of {', '.join(wanted)} once", code="bad-order")
    rounds = []
    for domain in names:
        intents = set(wanted[domain])
        records = []
        for part, split in (("train", "train"), (heldout, "heldout")):
            taken: dict[str, int] = {}
            for number, (text, intent) in enumerate(_entries(data, part, source)):
                if intent not in intents:
                    continue
                taken[intent] = taken.get(intent, 0) + 1
                if limit is not None and split == "train" and taken[intent] > limit:
                    continue
                records.append(
                    {
                        "id": f"clinc150-{part}-{number}",
                        "domain": domain,
                        "split": split,
                        "origin": "human",
                        "text": text,
                        "label": intent,
                    }
                )
        if missing := intents - {record["label"] for record in records}:
            raise UsageError(f"{source} has no sentence of intent {min(missing)}", code="bad-data")
        rounds.append(Round(domain, tuple(records)))
    return Stream("clinc150", "CLINC150 (Larson et al., 2019, CC BY 3.0), a domain a round", tuple(rounds), heldout=0.0)


def read_json(source: str) -> Any:
    """The JSON document at a path or fsspec URL. Raises NotFoundError, UsageError when it isn't JSON."""
    import fsspec

    try:
        with fsspec.open(source, "rb") as file:
            return json.load(file)
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"there is nothing at {source}", code="no-data", hint="check the path, or the URL and the network"
        ) from exc
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{source} isn't JSON: {exc}", code="bad-data") from exc
    except (OSError, ValueError, ImportError) as exc:  # no such protocol, no network, no permission
        raise NotFoundError(
            f"can't read {source}: {exc}", code="no-data", hint="give a path or a reachable URL"
        ) from exc


def _entries(data: Any, part: str, source: str) -> list[tuple[str, str]]:
    entries = data.get(part) if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(value, str) for value in entry)
        for entry in entries
    ):
        raise UsageError(
            f"{source} isn't CLINC150: no list of [text, intent] under {part!r}",
            code="bad-data",
            hint="use data_full.json of https://github.com/clinc/oos-eval",
        )
    return [(entry[0], entry[1]) for entry in entries]


def _normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()
