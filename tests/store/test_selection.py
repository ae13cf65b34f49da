"""Selections: rows chosen under a budget, stored for good."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.errors import ConflictError, NotFoundError, StoreError, TreeringError, UsageError
from treering.store.measure import arrow_bytes, hash_texts, opening_words, token_counts
from treering.store.source import Source
from treering.store.strategies import BottomK, distances, importance_shares, in_turn, within

DOMAINS = {"billing": 600, "returns": 250, "login": 40, "tax": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """`support@v1`: four domains of very different sizes, some held out, some excluded, and none after it in live."""
    corpus = treering.open(tmp_path_factory.mktemp("selection") / "store").create("support", "labelled", heldout=0.1)
    with corpus.capture() as live:
        live.extend(
            [
                {
                    "id": f"{domain}-{n}",
                    "text": f"{domain} opens like number {n % 9} " + "and says more " * (n % 13),
                    "label": f"l{n % 3}",
                    "domain": domain,
                }
                for domain, rows in DOMAINS.items()
                for n in range(rows)
            ]
        )
    corpus.snapshot()
    corpus.annotate_many([{"id": f"billing-{n}", "exclude": True} for n in range(50)])
    return corpus.store.load("support@v1")


def store_of(source: Source) -> treering.Store:
    store = source.segments[0]._corpus.store
    assert isinstance(store, treering.Store)
    return store


def train(source: Source) -> pa.Table:
    return pa.Table.from_batches(
        [batch for segment in source.segments for batch in segment.scan(None, "train")], source.schema
    )


def cells(source: Source) -> Counter[tuple[str, str]]:
    """How many training rows each label of each domain has."""
    return Counter((row["domain"], row["label"]) for row in train(source).to_pylist())


def ids(source: Source) -> list[str]:
    return list(train(source).column("id").to_pylist())


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "reservoir"},
    {"strategy": "balanced"},
    {"strategy": "balanced", "by": "label"},
    {"strategy": "diverse"},
    {"strategy": "importance", "forgetting": {"login": 0.4, "billing": 0.1}},
    {"strategy": "importance", "forgetting": {"login": 0.4}, "floor": 3},
]


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 3),
    size=st.floats(0.002, 1.2),
    unit=st.sampled_from(["rows", "mb", "tokens"]),
)
def test_a_budget_is_filled_and_never_exceeded(
    source: Source, how: dict[str, Any], seed: int, size: float, unit: str
) -> None:
    table = train(source)
    columns = ["text", "label"]
    costs = {
        "rows": np.ones(len(table), np.int64),
        "mb": arrow_bytes(table.select(columns).combine_chunks().to_batches()[0]),
        "tokens": token_counts(table.select(columns).combine_chunks().to_batches()[0]),
    }[unit]
    cost = dict(zip(table.column("id").to_pylist(), costs.tolist(), strict=True))
    budget = max(int(costs.sum() * size), int(costs.max()))
    given_budget = {unit: budget / 1e6 if unit == "mb" else budget, **({"columns": columns} if unit == "mb" else {})}
    chosen = source.select(**given_budget, seed=seed, **how)
    record = chosen.selection
    assert record is not None
    picked = ids(chosen)
    assert len(set(picked)) == len(picked) == len(chosen) == record.rows
    assert set(picked) <= set(cost)  # training rows, none of them excluded
    used = sum(cost[one] for one in picked)
    assert used == record.used <= budget + 1
    if how.get("floor") != 3:  # there domains without forgetting get their floor and no more
        assert used > budget - costs.max() or len(picked) == len(cost)
    again = source.select(**given_budget, seed=seed, **how)
    assert again.pin() == chosen.pin()
    assert store_of(source).load(chosen.ref).pin() == chosen.pin()
    assert Source.from_pin(store_of(source), chosen.pin()).pin() == chosen.pin()


def test_a_reservoir_is_uniform_and_smaller_ones_are_part_of_larger_ones(source: Source) -> None:
    small, large = (set(ids(source.select(rows=n, seed=1))) for n in (40, 200))
    assert small < large
    assert set(ids(source.select(rows=40, seed=2))) != small
    hits: Counter[str] = Counter()
    n, k, seeds = len(ids(source)), 80, 60
    for seed in range(seeds):
        hits.update(ids(source.select(rows=k, seed=seed)))
    expected = seeds * k / n
    chi = sum((hits[one] - expected) ** 2 / (expected * (1 - k / n)) for one in ids(source))
    assert abs(chi - n) < 5 * math.sqrt(2 * n)  # χ² of n rows, within five standard deviations


def test_the_same_records_are_chosen_in_another_store(source: Source, tmp_path: Path) -> None:
    corpus = treering.open(tmp_path / "other").create("support", "labelled")
    rows = train(source).to_pylist()
    with corpus.capture() as live:
        live.extend(rows[::-1])
    other = corpus.store.live("support")
    assert set(ids(other.select(rows=50, seed=3))) == set(ids(source.select(rows=50, seed=3)))


def test_balanced_gives_domains_alike_and_what_a_small_one_cant_fill_to_the_others(source: Source) -> None:
    chosen = source.select(rows=100, strategy="balanced")
    counts = Counter(train(chosen).column("domain").to_pylist())
    small = Counter(train(source).column("domain").to_pylist())["tax"]
    assert counts["tax"] == small
    others = [counts[name] for name in ("billing", "returns", "login")]
    assert sum(others) == 100 - small
    assert max(others) - min(others) <= 1


def test_importance_gives_more_to_what_is_forgotten_more_and_a_floor_to_all(source: Source) -> None:
    chosen = source.select(rows=120, strategy="importance", forgetting={"billing": 0.3, "returns": 0.1}, floor=0.05)
    record = chosen.selection
    assert record is not None
    assert record.weights == pytest.approx({"billing": 0.65, "returns": 0.25, "login": 0.05, "tax": 0.05})
    counts = Counter(train(chosen).column("domain").to_pylist())
    assert counts["login"] in (6, 7)
    assert counts["billing"] / counts["returns"] == pytest.approx(2.6, rel=0.06)
    with pytest.raises(UsageError, match="can't each get"):
        source.select(rows=120, strategy="importance", forgetting={}, floor=0.3)
    with pytest.raises(UsageError, match="number ≥ 0"):
        source.select(rows=120, strategy="importance", forgetting={"billing": -0.1})


def test_importance_takes_a_score_matrix_by_domain(source: Source) -> None:
    matrix = treering.ScoreMatrix(
        rounds=("1", "2"),
        slices=("support[domain=billing]", "support[domain=login]"),
        values=np.array([[0.9, np.nan], [0.6, 0.8]]),
    )
    chosen = source.select(rows=50, strategy="importance", forgetting=matrix)
    assert chosen.selection is not None
    assert max(chosen.selection.weights, key=chosen.selection.weights.__getitem__) == "billing"


def test_diverse_takes_in_turn_from_records_that_begin_alike(source: Source) -> None:
    openings = Counter(" ".join(text.split()[:5]) for text in train(source).column("text").to_pylist())
    chosen = source.select(strategy="diverse", rows=len(openings))
    assert chosen.selection is not None
    assert {" ".join(text.split()[:5]) for text in train(chosen).column("text").to_pylist()} == set(openings)
    assert chosen.selection.by == "opening words"
    everything = source.select(strategy="diverse")  # 10,000 rows, when nothing is said
    assert everything.selection is not None
    assert (everything.selection.budget, everything.selection.rows) == (10_000, len(ids(source)))
    by_call = source.select(strategy="diverse", rows=6, by=lambda batch: batch.column("label"))
    assert Counter(train(by_call).column("label").to_pylist()) == {"l0": 2, "l1": 2, "l2": 2}


def test_a_report_says_how_far_the_choice_is_from_the_source(source: Source) -> None:
    whole = source.select(rows=10_000).selection
    assert whole is not None
    assert (whole.report.total_variation, whole.report.jensen_shannon) == (0, 0)
    chosen = source.select(rows=40, strategy="reservoir", floor=8).selection
    assert chosen is not None
    report = chosen.report
    assert [d.domain for d in report.domains] == ["billing", "returns", "login", "tax"]
    assert sum(d.rows for d in report.domains) == 40
    assert report.starving == [d.domain for d in report.domains if d.rows < 8]
    assert "tax" in report.starving
    balanced = source.select(rows=40, strategy="balanced").selection
    assert balanced is not None
    assert balanced.report.total_variation > report.total_variation


def test_distances_are_those_of_the_book() -> None:
    assert distances(np.array([1, 1]), np.array([5, 5])) == (0, 0)
    assert distances(np.array([1, 0]), np.array([0, 1])) == (1, 1)
    variation, divergence = distances(np.array([3, 1]), np.array([1, 1]))
    assert variation == 0.25
    p, q, m = np.array([0.75, 0.25]), np.array([0.5, 0.5]), np.array([0.625, 0.375])
    assert divergence == pytest.approx(float((p * np.log2(p / m)).sum() / 2 + (q * np.log2(q / m)).sum() / 2))


def test_a_selection_never_changes_and_its_name_is_never_another_one(source: Source) -> None:
    first = source.select(rows=20, name="kept", seed=1)
    assert source.select(rows=20, name="kept", seed=1).pin() == first.pin()
    with pytest.raises(ConflictError, match="support/kept is another selection"):
        source.select(rows=21, name="kept", seed=1)
    assert store_of(source).load("support/kept").pin() == first.pin()
    assert first.selection in store_of(source).corpus("support").selections()
    with pytest.raises(NotFoundError, match="no selection support/nope"):
        store_of(source).load("support/nope")
    assert first.selection is not None
    path = store_of(source).root / first.selection.row_ids
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:-1] + b"x")
        with pytest.raises(StoreError, match="isn't what support/kept names"):
            store_of(source).load("support/kept")
    finally:
        path.write_bytes(kept)


def test_a_selection_can_be_narrowed_and_chosen_from_again(source: Source) -> None:
    first = source.select(rows=100, strategy="balanced", name="hundred")
    login = first.where(domain="login")
    assert set(ids(login)) == {one for one in ids(first) if one.startswith("login")}
    pinned = Source.from_pin(store_of(source), login.pin())
    assert ids(pinned) == ids(login)
    second = first.select(rows=10)
    assert set(ids(second)) < set(ids(first))
    assert len(first.heldout()) == 0
    with pytest.raises(UsageError, match="no training rows"):
        source.heldout().select(rows=5)
    with pytest.raises(UsageError, match="no training rows"):
        source.where(domain="nobody").select(rows=5)


def test_a_selection_of_live_outlasts_sealing_compaction_and_later_words(tmp_path: Path) -> None:
    corpus = treering.open(tmp_path / "store").create("support", "labelled", heldout=0)
    store = corpus.store
    for part in range(3):
        with corpus.capture() as live:
            live.extend([{"id": f"{part}-{n}", "text": f"t {n}", "label": "l"} for n in range(50)])
    chosen = store.live("support").select(rows=30, name="thirty")
    lock = treering.mix(chosen, seed=1).lock(10, columns=["id", "text"])
    with lock.loader(store) as loader:
        expected = [batch["id"] for batch in loader]
    corpus.compact()
    corpus.snapshot()
    corpus.clean_up(older_than_s=0)
    with corpus.capture() as live:
        live.extend([{"id": f"later-{n}", "text": "t", "label": "l"} for n in range(50)])
    gone = ids(store.load("support/thirty"))[0]
    corpus.annotate(gone, exclude=True)
    with lock.loader(store) as loader:
        assert [batch["id"] for batch in loader] == expected
    assert gone not in ids(store.load("support/thirty"))
    assert len(ids(store.load("support/thirty"))) == 29
    batches = store.mix("support/thirty", "support@live", weights=[0.5, 0.5]).counts(1, 10)
    assert batches.tolist() == [[5, 5]]


def test_what_narrows_a_source_outlasts_evolution(tmp_path: Path) -> None:
    columns = pa.schema([("text", pa.string()), ("kind", pa.string()), ("level", pa.int32())])
    corpus = treering.open(tmp_path / "store").create("support", columns, heldout=0)
    store = corpus.store
    with corpus.capture() as live:
        live.extend([{"id": f"a-{n}", "text": "t", "kind": f"k{n % 3}", "level": n % 5} for n in range(60)])
    corpus.snapshot()
    corpus.annotate("a-0", exclude=True)
    narrow = store.load("support@v1").where(kind="k0", level=[0, 1])
    chosen = narrow.select(rows=5, name="five")
    lock = treering.mix(narrow.balanced("kind"), chosen, seed=1).lock(4, columns=["id", "kind"])
    with lock.loader(store) as loader:
        expected = [(batch["id"], batch["kind"]) for batch in loader]
    corpus.evolve(
        pa.schema([("text", pa.string()), ("type", pa.string()), ("level", pa.int64()), ("lang", pa.string())]),
        renames={"kind": "type"},
        defaults={"lang": "en"},
    )
    after = store.load("support@v1").where(type="k0", level=[0, 1], lang="en")
    assert ids(after) == ids(narrow)
    assert ids(store.load("support/five")) == ids(chosen)
    assert store.load("support/five").to_table(["type", "lang"]).column("lang").to_pylist() == ["en"] * 5
    assert after.select(rows=5, by="type").selection.report.by == "type"  # type: ignore[union-attr]
    with lock.loader(store) as loader:
        assert [(batch["id"], batch["kind"]) for batch in loader] == expected


def test_where_narrows_what_is_drawn_read_and_evaluated(source: Source) -> None:
    login = source.where(domain="login")
    assert set(login.to_table(["domain"]).column("domain").to_pylist()) == {"login"}
    assert len(login) == DOMAINS["login"]
    assert len(login.heldout()) + len(ids(login)) == DOMAINS["login"]
    both = source.where(domain=["login", "tax"], label="l0")
    assert {(r["domain"], r["label"]) for r in both.to_table().to_pylist()} == {("login", "l0"), ("tax", "l0")}
    assert both.where(domain="tax").where(domain="login").to_table(["id"]).num_rows == 0
    assert source.where(session_id=None).to_table(["id"]).num_rows == sum(DOMAINS.values())
    assert Source.from_pin(store_of(source), both.pin()).pin() == both.pin()
    for wrong in ({"domain": 7}, {"domain": []}, {"ts": "2024-01-01"}, {"domain": True}):
        with pytest.raises(UsageError):
            source.where(**wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no column 'mood'"):
        source.where(mood="good")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "one budget"),
        ({"rows": 5, "tokens": 5}, "one budget"),
        ({"rows": 0}, "holds nothing"),
        ({"rows": True}, "holds nothing"),
        ({"rows": 2.5}, "holds nothing"),
        ({"mb": float("nan")}, "holds nothing"),
        ({"rows": 5, "strategy": "best"}, "strategy is"),
        ({"rows": 5, "strategy": "importance"}, "needs to know"),
        ({"rows": 5, "forgetting": {}}, "takes no forgetting"),
        ({"rows": 5, "columns": ["text"]}, "go with mb"),
        ({"rows": 5, "floor": 0.5}, "floor is"),
        ({"rows": 5, "name": "../x"}, "can't name"),
        ({"rows": 5, "seed": "x"}, "seed is"),
        ({"mb": 0.00001}, "fits into"),
        ({"rows": 5, "strategy": "balanced", "by": "mood"}, "no column"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(source: Source, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, NotFoundError), match=says):
        source.select(**wrong)


# --- the pure parts --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20) | st.none(), max_size=30), st.integers(0, 5), st.text(max_size=4))
def test_a_texts_hash_depends_on_nothing_but_the_text_and_the_key(texts: list[str | None], cut: int, key: str) -> None:
    array = pa.array(texts, pa.string())
    whole = hash_texts(array, key)
    assert whole.tolist() == [hash_texts(pa.array([one], pa.string()), key)[0] for one in texts]
    assert hash_texts(array.slice(cut), key).tolist() == whole[cut:].tolist()
    same = {text or "": value for text, value in zip(texts, whole.tolist(), strict=True)}
    assert len(set(same.values())) == len(same)
    assert not len(whole) or hash_texts(array, key + "x").tolist() != whole.tolist()


def test_hashes_of_ids_that_count_up_are_spread_evenly() -> None:
    hashes = hash_texts(pa.array([f"record-{n}" for n in range(100_000)]), "seed")
    for shift in (0, 20, 56):
        counts = np.bincount(((hashes >> np.uint64(shift)) & np.uint64(255)).astype(np.int64), minlength=256)
        chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi < 255 + 6 * math.sqrt(2 * 255)
    assert len(np.unique(hashes)) == 100_000
    assert hex(int(hash_texts(pa.array(["record-1"]), "seed")[0])) == "0x3561a2d0ecca1d51"  # on any machine


@given(st.data())
def test_a_stream_of_any_pieces_gives_the_bottom_of_the_whole(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 200))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    hashes, costs = generator.integers(0, 50, n).astype(np.uint64), generator.integers(0, 9, n)
    budget = data.draw(st.integers(1, 400))
    bottom = BottomK(budget)
    bottom._wait = 16
    for start in range(0, n, 13):
        part = slice(start, start + 13)
        bottom.add(hashes[part], np.arange(n)[part], np.zeros(n, np.int64)[part], costs[part])
    order = np.lexsort((np.arange(n), hashes))
    order = order[: within(costs[order], budget)]
    rows, _, used = bottom.rows()
    assert rows.tolist() == order.tolist()
    assert used == costs[order].sum() <= budget


@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=5, max_size=5),
    floor=st.integers(0, 3),
)
def test_groups_come_in_turn_by_weight_after_their_floor(groups: list[int], weights: list[float], floor: int) -> None:
    codes, w = np.array(groups), np.array(weights)
    order = in_turn(codes, np.arange(len(codes)).astype(np.uint64), np.arange(len(codes)), w, floor)
    sizes = np.bincount(codes, minlength=5)
    assert len(set(order.tolist())) == len(order)
    assert len(order) == sum(size if w[g] else min(size, floor) for g, size in enumerate(sizes))
    first = int(np.minimum(sizes, floor).sum())
    assert np.bincount(codes[order[:first]], minlength=5).tolist() == np.minimum(sizes, floor).tolist()
    taken = np.zeros(5)
    for one in order[first:]:
        taken[codes[one]] += 1
        left = [g for g in range(5) if w[g] and floor + taken[g] < sizes[g]]
        for a in left:
            for b in left:  # nobody who still has rows lags behind another by more than a turn
                assert (floor + taken[a] + 0.5) / w[a] >= (floor + taken[b] - 0.5) / w[b] or taken[b] == 0


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), max_size=60),
)
def test_parts_of_a_group_come_in_turn_and_chance_decides_within_them(rows: list[tuple[int, int, int]]) -> None:
    groups, parts, hashes = (np.array([row[n] for row in rows], np.int64) for n in range(3))
    order = in_turn(groups, hashes.astype(np.uint64), np.arange(len(rows)), np.ones(4), parts=parts).tolist()
    assert sorted(order) == list(range(len(rows)))
    for group in range(4):
        mine = [n for n in order if groups[n] == group]
        sizes = np.bincount(parts[mine], minlength=4) if mine else np.zeros(4)
        for most in range(len(mine)):
            taken = np.bincount(parts[mine[: most + 1]], minlength=4)
            assert all(taken[a] >= min(sizes[a], taken.max() - 1) for a in range(4))  # as even as there are any
        for part in range(4):
            luck = [hashes[n] for n in mine if parts[n] == part]
            assert luck == sorted(luck)


def test_chance_alone_decides_between_groups_whatever_their_parts() -> None:
    groups, parts = np.repeat([0, 1], 20), np.concatenate([np.arange(20), np.zeros(20, np.int64)])
    odd = 0  # how often the group of many parts gets one of 21 rows more than the other
    for seed in range(60):
        hashes = np.random.default_rng(seed).permutation(40).astype(np.uint64)
        odd += int((groups[in_turn(groups, hashes, np.arange(40), np.ones(2), parts=parts)[:21]] == 0).sum() == 11)
    assert 10 < odd < 50


def test_a_choice_by_importance_is_spread_over_the_labels_of_each_domain(source: Source) -> None:
    lost = {"billing": 0.3, "returns": 0.1}
    plain = source.select(rows=40, strategy="importance", forgetting=lost)
    even = source.select(rows=40, strategy="importance", forgetting=lost, spread="label")
    assert plain.selection is not None
    assert even.selection is not None
    assert plain.selection.name != even.selection.name
    assert (plain.selection.spread, even.selection.spread) == ("", "label")
    assert [(d.domain, d.rows) for d in even.selection.report.domains] == [
        (d.domain, d.rows) for d in plain.selection.report.domains
    ]
    there = cells(source)

    def is_even(chosen: Source) -> bool:
        taken = cells(chosen)
        most = {domain: max(n for (d, _), n in taken.items() if d == domain) for domain, _ in taken}
        return all(taken[cell] >= min(n, most[cell[0]] - 1) for cell, n in there.items() if cell[0] in most)

    assert is_even(even)
    assert not is_even(plain)
    with pytest.raises(UsageError, match="no groups whose rows could be spread"):
        source.select(rows=40, spread="label")
    with pytest.raises(TreeringError, match="nothing"):
        source.select(rows=40, strategy="balanced", spread="nothing")


def test_bytes_tokens_and_openings_are_those_of_the_records() -> None:
    messages = [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "  Where IS my parcel today, please?"}],
        [{"role": "assistant", "content": "hello"}],
        [{"role": "user", "content": None}],
    ]
    batch = pa.RecordBatch.from_pydict(
        {
            "text": pa.array(["ab", None, "ü"]),
            "n": pa.array([1, None, 3], pa.int32()),
            "list": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
            "messages": pa.array(messages),
        }
    )
    assert arrow_bytes(batch.select(["text", "n", "list"])).tolist() == [6 + 4 + 20, 4 + 4 + 4, 6 + 4 + 4]
    assert arrow_bytes(batch.slice(1).select(["list"])).tolist() == [4, 4]
    assert token_counts(batch.select(["messages"])).tolist() == [2 + 6 + 2, 2, 1]
    assert token_counts(pa.RecordBatch.from_pydict({"tokens": pa.array([[1, 2, 3], [4]])})).tolist() == [3, 1]
    assert opening_words(batch, ["n", "messages"]).to_pylist() == ["where is my parcel today,", None, None]
    assert opening_words(batch.slice(1), ["messages"]).to_pylist() == [None, None]
    assert opening_words(batch, ["text"]).to_pylist() == ["ab", None, "ü"]
    assert opening_words(batch, ["list"]).to_pylist() == ["1 2", "", None]
    with pytest.raises(UsageError, match="by="):
        opening_words(batch, ["n"])


def test_importance_without_forgetting_is_even() -> None:
    assert importance_shares(["a", "b"], {}, 0.1).tolist() == [0.5, 0.5]
    assert importance_shares(["a", "b"], {"a": 3.0, "c": 9.0}, 0.1).tolist() == pytest.approx([0.9, 0.1])
