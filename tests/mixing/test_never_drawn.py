"""The promise behind every mix: a record that is held out, or excluded, is never in a training batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import treering
from treering.mixing.recipe import Mix
from treering.mixing.sources import TrainRows
from treering.schema import Labelled
from treering.store.source import Source

DOMAINS = ["billing", "returns", "login", None]
FORGOTTEN = {"billing": 0.1, "returns": 0.0, "": 0.2}


class Evolved(Labelled):
    channel: str = "web"


@dataclass(frozen=True)
class Forbidden:
    """A store, and by row id what may be drawn: bool (rows,)."""

    store: treering.Store
    allowed: np.ndarray[Any, np.dtype[np.bool_]]
    ids: frozenset[str]  # of the records that may be drawn
    domains: dict[str, str | None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Forbidden:
    """Three snapshots and live, a fifth held out, every 17th record excluded (and some back in), columns in the cache.

    The corpus evolves after the first two: they are read by a rule, and have the channel that records now have.
    """
    store = treering.open(tmp_path_factory.mktemp("never") / "store")
    corpus = store.create("support", "labelled", heldout=0.2)
    for part in range(4):
        for piece in range(2):
            with corpus.capture() as live:
                live.extend(
                    [
                        {
                            "id": f"{part}-{piece}-{n}",
                            "text": f"text {n % 11} of {part}",
                            "label": f"l{n % 5}",
                            "domain": DOMAINS[n % 7 % 4],
                        }
                        for n in range(400)
                    ]
                )
        names = [f"{part}-{piece}-{n}" for piece in range(2) for n in range(0, 400, 17)]
        corpus.annotate_many([{"id": one, "exclude": True} for one in names])
        corpus.annotate_many([{"id": one, "exclude": False} for one in names[::5]])
        corpus.annotate_many([{"id": f"{part}-0-{n}", "quality": n % 4} for n in range(400)])
        if part < 3:
            corpus.snapshot()
        if part == 1:
            corpus.evolve(Evolved)
    corpus.compact()
    for ref in ("support@v1", "support@v1..v3"):
        store.cache.build(store.load(ref), ["id", "label"])
    out = {f"{part}-{piece}-{n}": True for part in range(4) for piece in range(2) for n in range(0, 400, 17)}
    for part in range(4):
        for one in [f"{part}-{piece}-{n}" for piece in range(2) for n in range(0, 400, 17)][::5]:
            del out[one]
    allowed = np.zeros(4 * 800 + 1, bool)
    ids, domains = set(), {}
    for ref in ("support@v1..v3", "support@live"):
        for batch in store.load(ref).scan(["id", "split", "domain", "_rowid"]):
            for record, split, domain, row in zip(*(batch.column(k).to_pylist() for k in range(4)), strict=True):
                domains[record] = domain
                if split == "train" and record not in out:
                    allowed[row] = True
                    ids.add(record)
    assert 0 < allowed.sum() < 3200 * 0.85
    return Forbidden(store, allowed, frozenset(ids), domains)


# What may be done to a source before it is mixed. Whatever else comes to narrow or to serve rows joins here.
STEPS: dict[str, Callable[[Source, int], Source]] = {
    "as it is": lambda source, k: source,
    "where a domain": lambda source, k: source.where(domain=DOMAINS[k % 4]),
    "where domains and a label": lambda source, k: source.where(domain=DOMAINS[: 1 + k % 4], label=f"l{k % 5}"),
    "where a column that came later": lambda source, k: source.where(channel=["web", None][: 1 + k % 2]),
    "reservoir": lambda source, k: source.select(rows=40 + 13 * k, seed=k),
    "balanced selection": lambda source, k: source.select(mb=0.004 + k / 1e3, strategy="balanced", by="label"),
    "diverse": lambda source, k: source.select(strategy="diverse", rows=30 + k),
    "importance": lambda source, k: source.select(
        tokens=90 + k, strategy="importance", forgetting=FORGOTTEN | {"login": k}
    ),
    "pinned and found again": lambda source, k: Source.from_pin(source.segments[0]._corpus.store, source.pin()),
}
SAMPLINGS: dict[str, Callable[[Source], Source]] = {
    "uniform": lambda source: source,
    "balanced by a column": lambda source: source.balanced("label"),
    "balanced by what was said": lambda source: source.balanced("quality"),
    "weighted by what was said": lambda source: source.weighted("quality", missing=0.5),
}
REFS = ["support@v1", "support@v2", "support@v1..v3", "support@live", "support@new"]

Member = st.tuples(
    st.sampled_from(REFS),
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9)), max_size=3),
    st.sampled_from(sorted(SAMPLINGS)),
    st.integers(1, 9),
)
# How batches are served.
SERVED = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([8, 30, 256]),
        "chunk_rows": st.sampled_from([1, 4, 32]),
        "pool_rows": st.sampled_from([64, 1024, 65_536]),
    }
)
COLUMNS = st.sampled_from([["id"], ["id", "label"], ["id", "text"]])  # all in the cache, or not


def mixed(world: Forbidden, members: list[tuple[str, list[tuple[str, int]], str, int]], seed: int) -> Mix | None:
    sources = []
    for ref, steps, sampling, _ in members:
        source = world.store.load(ref)
        for name, k in steps:
            if TrainRows.of(source).size:
                source = STEPS[name](source, k)
        if not TrainRows.of(source).size:
            return None  # nothing is left of it, and a mix says so
        sources.append(SAMPLINGS[sampling](source))
    return treering.mix(*sources, weights=[weight for *_, weight in members], seed=seed)


def draw(world: Forbidden, mix: Mix, served: dict[str, int], draws: int) -> int:
    """Draw by the plan alone, as many as wanted over all sources; how many were."""
    rows = [TrainRows.of(source) for source in mix.sources]
    plan = mix.lock(**served).plan(rows)
    taken = plan.taken_before(-(-draws // served["batch_size"]))
    for source, count in enumerate(taken):
        positions = np.unique(plan.sources[source].positions(np.arange(count)))
        located = rows[source].locate(positions)
        row_ids = np.concatenate([ids for _, ids in located]) if located else np.empty(0, np.int64)
        assert len(row_ids) == len(positions)
        assert world.allowed[row_ids].all()
    return sum(taken)


def check_never_drawn(world: Forbidden, examples: int, draws: int) -> None:
    total = 0

    @settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(
        members=st.lists(Member, min_size=1, max_size=3),
        seed=st.integers(0, 2**32),
        served=SERVED,
        columns=COLUMNS,
        cache=st.booleans(),
    )
    def search(members: Any, seed: int, served: dict[str, int], columns: list[str], cache: bool) -> None:
        nonlocal total
        mix = mixed(world, members, seed)
        if mix is None:
            return
        total += draw(world, mix, served, draws)
        # And through all that reads and hands out.
        with mix.loader(columns=columns, epochs=None, cache=cache, **served) as loader:
            for batch in islice(loader, 2):
                assert world.ids.issuperset(batch["id"])

    search()
    assert total > 0.5 * examples * draws


def test_in_a_million_draws_no_heldout_and_no_excluded_record_comes(world: Forbidden) -> None:
    check_never_drawn(world, 35, 50_000)


@pytest.mark.slow
def test_in_a_hundred_million_draws_no_heldout_and_no_excluded_record_comes(world: Forbidden) -> None:
    check_never_drawn(world, 400, 250_000)


def test_what_a_filter_leaves_out_is_never_drawn_either(world: Forbidden) -> None:
    source = world.store.load("support@v1..v3").where(domain=["login", None]).balanced("domain")
    with treering.mix(source).loader(64, columns=["id"], epochs=3) as loader:
        seen = {record for batch in loader for record in batch["id"]}
    assert seen
    assert {world.domains[record] for record in seen} == {"login", None}
    assert seen <= world.ids


def test_a_followed_live_takes_in_only_what_it_was_narrowed_to(store: treering.Store) -> None:
    corpus = store.create("support", "labelled", heldout=0.2)

    def capture(prefix: str) -> None:
        with corpus.capture() as live:
            live.extend(
                [
                    {"id": f"{prefix}-{n}", "text": "t", "label": f"l{n % 3}", "domain": DOMAINS[n % 4]}
                    for n in range(200)
                ]
            )

    capture("a")
    corpus.annotate_many([{"id": f"a-{n}", "exclude": True} for n in range(0, 200, 8)])
    source = store.live("support").where(domain="billing")
    with treering.mix(source, seed=1).loader(2, follow=True, columns=["id"], epochs=None, pool_rows=64) as loader:
        batches = iter(loader)
        seen = {record for batch in islice(batches, 40) for record in batch["id"]}
        capture("b")
        seen |= {record for batch in islice(batches, 400) for record in batch["id"]}
        lock = loader.lock()
    assert {record[0] for record in seen} == {"a", "b"}
    numbers = {(record[0], int(record[2:])) for record in seen}
    assert all(n % 4 == 0 and not (prefix == "a" and n % 8 == 0) for prefix, n in numbers)
    corpus.snapshot()
    corpus.annotate_many([{"id": record, "exclude": True} for record in sorted(seen)])
    with lock.loader(store) as replayed:
        assert {record for batch in islice(replayed, 440) for record in batch["id"]} == seen


def test_what_is_drawn_by_weight_doesnt_grow(store: treering.Store) -> None:
    corpus = store.create("support", "labelled", heldout=0)
    with corpus.capture() as live:
        live.extend([{"id": f"a-{n}", "text": "t", "label": f"l{n % 3}"} for n in range(50)])
    live_source = store.live("support")
    with pytest.raises(treering.UsageError, match="drawn by weight"):
        treering.mix(live_source.balanced("label")).loader(8, follow=True)
    with pytest.raises(treering.UsageError, match="each new record once"):
        treering.mix(live_source, live_source.balanced("label"), replay_ratio=0.3)
    with pytest.raises(treering.UsageError, match="nothing to follow"):
        treering.mix(live_source.select(rows=10)).loader(8, follow=True)
