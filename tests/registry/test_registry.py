from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import CheckFailedError, ConflictError, NotFoundError, StoreError, UsageError
from treering.evaluation import GatePolicy, Verdict, check
from treering.registry import AdapterRecord, Registry, ScoreLog, StoredAdapter, training_data
from treering.registry.trained import covers, overlaps

calm = settings(deadline=None)  # two busy cores make any time limit flaky


def add(registry: Registry, **fields: object) -> AdapterRecord:
    return registry.add(**{"weights": b"weights", "card": {"labels": ["a"]}, **fields})  # type: ignore[arg-type]


def verdict(registry: Registry, ref: str, passed: bool = True, baseline: str | None = None) -> AdapterRecord:
    said = check(
        {"support@v1": 1.0 if passed else 0.0}, {}, GatePolicy(min_score=0.5), candidate=ref, baseline=baseline
    )
    return registry.record_verdict(ref, said)


def promoted(registry: Registry, **fields: object) -> AdapterRecord:
    production = registry.state().production
    record = add(registry, **fields)
    verdict(registry, record.ref, baseline=None if production is None else f"{registry.corpus}:{production}")
    return registry.promote(record.ref)


@pytest.fixture
def registry(store) -> Registry:
    return Registry(store, "support")


# -- adding and reading


def test_an_added_adapter_is_a_candidate_with_the_next_number(registry: Registry) -> None:
    first, second = (
        add(registry),
        add(registry, parent="support:1", trained_on=["support@v2"], scores={"support@v2": 0.5}),
    )
    assert [r.ref for r in (first, second)] == ["support:1", "support:2"]
    assert second.status == "candidate"
    assert registry.get("support:2") == second
    assert registry.adapters() == [first, second]
    assert registry.get("support:candidate") == second


def test_the_record_is_written_last_and_holds_trained_on_as_json(store, registry: Registry) -> None:
    written: list[str] = []
    store.objects.before_create = written.append
    add(registry, lock=b"{}", lock_digest="d", trained_on=["support@v1"])
    folder = "adapters/support/1/"
    assert written == [folder + name for name in ("weights.safetensors", "card.json", "lock.json", "record.json")]
    document = json.loads(store.objects.get(folder + "record.json"))
    assert document["trained_on"] == ["support@v1"]
    assert StoredAdapter.model_validate_json(store.objects.get(folder + "record.json")).ref == "support:1"


@pytest.mark.parametrize("last", ["weights.safetensors", "card.json", "lock.json"])
def test_a_crash_before_the_record_leaves_no_adapter_and_its_number_is_never_used(store, registry, last: str) -> None:
    class Crash(Exception):
        pass

    def crash_after(path: str) -> None:
        if f"adapters/support/1/{last}" in store.objects.data:
            raise Crash

    store.objects.before_create = crash_after
    with pytest.raises(Crash):
        add(registry, lock=b"{}")
    store.objects.before_create = None
    assert registry.adapters() == []
    assert add(registry).ref == "support:2"
    assert [r.number for r in registry.adapters()] == [2]


def test_adders_that_race_get_different_numbers_and_lose_nothing(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda i: add(registry, weights=f"w{i}".encode(), strategy=f"s{i}"), range(16)))
    assert sorted(r.number for r in records) == list(range(1, 17))
    for i, record in enumerate(records):
        assert registry.weights(record.ref) == f"w{i}".encode()
        assert registry.get(record.ref).strategy == f"s{i}"


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(store, registry: Registry) -> None:
    for fields in ({"scores": {"support@v1": float("nan")}}, {"config": {"x": object()}}, {"card": {"x": {1, 2}}}):
        with pytest.raises(UsageError):
            add(registry, **fields)
    assert store.objects.data == {}


def test_a_parent_must_exist_and_is_written_down_by_number(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        add(registry, parent="support:7")
    add(registry)
    assert add(registry, parent="support:candidate").parent == "support:1"


def test_lineage_runs_from_the_oldest_parent_and_collects_what_was_trained_on(registry: Registry) -> None:
    add(registry, trained_on=["support@v1"], trained_rows={"support": [(0, 10)]})
    add(registry, trained_on=["support@v9"])  # another lineage in the same store
    add(registry, parent="support:1", trained_on=["support@v2"], trained_rows={"support": [(10, 20), (30, 40)]})
    assert [r.number for r in registry.lineage("support:3")] == [1, 3]
    assert registry.trained_on("support:3") == ["support@v1", "support@v2"]
    assert registry.trained_rows("support:3") == [(0, 20), (30, 40)]
    assert [r.number for r in registry.trained_with("support@v2")] == [3]


def test_a_range_is_recorded_as_its_snapshots_and_live_only_by_its_rows(registry: Registry) -> None:
    assert add(registry, trained_on=["support@v1..v3", "support@v2", "general@v1"]).trained_on == [
        "support@v1",
        "support@v2",
        "support@v3",
        "general@v1",
    ]
    for ref in ("support@live", "support@new"):
        with pytest.raises(UsageError, match="other rows tomorrow"):
            add(registry, trained_on=[ref])


def test_the_pins_of_sources_say_what_was_trained_on() -> None:
    pins = [
        {"corpus": "support", "segments": [{"name": "v1", "row_ids": [0, 5]}, {"name": "v2", "row_ids": [5, 9]}]},
        {"corpus": "support", "segments": [{"name": "v2", "row_ids": [5, 9]}, {"name": "live", "row_ids": [9, 12]}]},
        {"corpus": "general", "segments": [{"name": "live", "row_ids": [3, 3]}]},
    ]
    assert training_data(pins) == (["support@v1", "support@v2"], {"support": [(9, 12)]})


@calm
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4), st.integers(0, 20), st.integers(0, 20))
def test_intervals_cover_and_overlap_as_sets_do(intervals, lo, hi) -> None:
    wanted = set(range(lo, hi))
    held = [set(range(a, b)) for a, b in intervals]
    assert overlaps(intervals, (lo, hi)) is any(wanted & one for one in held)
    assert covers(intervals, (lo, hi)) is (bool(wanted) and any(wanted <= one for one in held))


def test_a_parent_may_be_of_another_corpus(store, registry: Registry) -> None:
    add(Registry(store, "general"))
    record = add(registry, parent="general:candidate")
    assert record.parent == "general:1"
    assert [r.ref for r in registry.lineage(record.ref)] == ["support:1"]


def test_corpora_do_not_see_each_other(store, registry: Registry) -> None:
    add(registry)
    assert Registry(store, "general").adapters() == []
    with pytest.raises(UsageError, match="isn't an adapter of general"):
        Registry(store, "general").get("support:1")


def test_a_name_that_is_not_one_is_refused(store) -> None:
    for name in ("../x", "a/b", "", "a:b"):
        with pytest.raises(UsageError):
            Registry(store, name)


@pytest.mark.parametrize("ref", ["support:1", "support:production", "support:candidate"])
def test_what_is_not_there_is_not_found(registry: Registry, ref: str) -> None:
    with pytest.raises(NotFoundError):
        registry.get(ref)
    with pytest.raises(NotFoundError):
        registry.promote(ref)


# -- damage


def test_changed_weights_are_refused_at_load(store, registry: Registry) -> None:
    add(registry)
    store.objects.data["adapters/support/1/weights.safetensors"] = b"weightz"
    with pytest.raises(StoreError, match="isn't what was added"):
        registry.weights("support:1")


def test_a_changed_card_is_refused_at_load(store, registry: Registry) -> None:
    add(registry)
    assert registry.card("support:1") == {"labels": ["a"]}
    store.objects.data["adapters/support/1/card.json"] = b'{"labels": ["b"]}'
    with pytest.raises(StoreError, match="isn't what was added"):
        registry.card("support:1")


def test_lost_weights_and_a_record_that_is_not_one_are_store_errors(store, registry: Registry) -> None:
    add(registry)
    del store.objects.data["adapters/support/1/weights.safetensors"]
    with pytest.raises(StoreError, match="lost its weights"):
        registry.weights("support:1")
    store.objects.data["adapters/support/1/record.json"] = b"{}"
    with pytest.raises(StoreError, match=r"record\.json is damaged"):
        registry.get("support:1")


def test_a_lineage_that_bites_its_tail_is_a_store_error(store, registry: Registry) -> None:
    add(registry)
    add(registry, parent="support:1")
    path = "adapters/support/1/record.json"
    store.objects.data[path] = store.objects.data[path].replace(b'"parent": null', b'"parent": "support:2"')
    with pytest.raises(StoreError, match="names a parent that can't be"):
        registry.lineage("support:2")


def test_a_removed_event_is_noticed(store, registry: Registry) -> None:
    promoted(registry)
    del store.objects.data["adapters/support/events/000001.json"]
    with pytest.raises(StoreError, match="event 1 is missing"):
        registry.adapters()


# -- promotion


def test_promoting_what_passed_retires_what_was_in_production(registry: Registry) -> None:
    promoted(registry)
    assert promoted(registry).status == "production"
    assert [r.status for r in registry.adapters()] == ["retired", "production"]
    assert registry.get("support:production").number == 2


def test_what_has_not_passed_a_gate_is_not_promoted(registry: Registry) -> None:
    add(registry)
    with pytest.raises(CheckFailedError, match="hasn't passed a gate"):
        registry.promote("support:1")
    assert registry.state().production is None


def test_what_the_gate_refused_is_not_promoted_and_the_reasons_are_said(registry: Registry) -> None:
    add(registry)
    assert verdict(registry, "support:1", passed=False).status == "refused"
    with pytest.raises(CheckFailedError, match=r"support@v1 scores 0\.0, below its minimum of 50\.0"):
        registry.promote("support:1")
    with pytest.raises(CheckFailedError):
        registry.promote("support:candidate")


def test_a_refused_candidate_stays_the_candidate_so_that_no_older_one_slips_in(registry: Registry) -> None:
    for _ in range(2):
        add(registry)
    verdict(registry, "support:1")
    verdict(registry, "support:2", passed=False)
    assert registry.get("support:candidate").number == 2
    with pytest.raises(CheckFailedError):
        registry.promote("support:candidate")


def test_the_latest_verdict_counts(registry: Registry) -> None:
    add(registry)
    verdict(registry, "support:1", passed=False)
    assert verdict(registry, "support:1").status == "candidate"
    assert registry.promote("support:1").status == "production"
    add(registry)
    verdict(registry, "support:2", baseline="support:1")
    verdict(registry, "support:2", passed=False, baseline="support:1")
    with pytest.raises(CheckFailedError):
        registry.promote("support:2")


def test_a_verdict_against_another_production_adapter_is_stale(registry: Registry) -> None:
    promoted(registry)
    add(registry)
    verdict(registry, "support:2", baseline="support:1")
    promoted(registry)
    with pytest.raises(CheckFailedError, match="compared with support:1, but support:3 is in production now"):
        registry.promote("support:2")
    verdict(registry, "support:2", baseline="support:3")
    assert registry.promote("support:2").status == "production"


def test_promoting_what_is_in_production_changes_nothing(registry: Registry) -> None:
    promoted(registry)
    before = registry.events()
    assert registry.promote("support:1").status == "production"
    assert registry.promote("support:production").number == 1
    assert registry.events() == before


def test_a_canary_verdict_does_not_take_production_out(registry: Registry) -> None:
    promoted(registry)
    assert verdict(registry, "support:production", passed=False).status == "production"


def test_the_verdict_is_kept_with_the_adapter(registry: Registry) -> None:
    add(registry)
    said = verdict(registry, "support:1", passed=False).verdict
    assert isinstance(said, Verdict)
    assert registry.get("support:1").verdict == said
    assert said.reasons == ["support@v1 scores 0.0, below its minimum of 50.0"]


# -- rollback and retirement


def test_rollback_brings_the_previous_production_adapter_back_step_by_step(registry: Registry) -> None:
    for _ in range(3):
        promoted(registry)
    assert registry.rollback().number == 2
    assert [r.status for r in registry.adapters()] == ["retired", "production", "retired"]
    assert registry.rollback().number == 1
    with pytest.raises(NotFoundError, match="no earlier production adapter"):
        registry.rollback()


def test_rollback_to_a_named_adapter_is_idempotent_and_only_goes_where_production_was(registry: Registry) -> None:
    for _ in range(3):
        promoted(registry)
    add(registry)
    assert registry.rollback(to="support:1").number == 1
    assert registry.rollback(to="support:1").number == 1
    with pytest.raises(NotFoundError, match="support:4 was never in production"):
        registry.rollback(to="support:4")


def test_rollback_without_history_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.rollback()
    promoted(registry)
    with pytest.raises(NotFoundError):
        registry.rollback()


def test_what_was_rolled_back_needs_a_new_gate(registry: Registry) -> None:
    promoted(registry)
    promoted(registry)
    registry.rollback()
    with pytest.raises(CheckFailedError, match="taken out of production"):
        registry.promote("support:2")
    verdict(registry, "support:2", baseline="support:1")
    assert registry.promote("support:2").status == "production"
    assert registry.rollback().number == 1


def test_retiring_is_idempotent_and_leaves_production_empty(registry: Registry) -> None:
    promoted(registry)
    promoted(registry)
    assert registry.retire("support:production").status == "retired"
    assert registry.retire("support:2").status == "retired"
    with pytest.raises(NotFoundError):
        registry.get("support:production")
    assert registry.rollback().number == 1


# -- races


def test_of_two_writers_that_promote_at_once_one_gets_a_conflict(store, registry: Registry) -> None:
    for _ in range(2):
        add(registry)
    verdict(registry, "support:1")
    verdict(registry, "support:2")

    def other_writer(path: str) -> None:
        store.objects.before_create = None
        Registry(store, "support").promote("support:2")

    store.objects.before_create = other_writer
    with pytest.raises(ConflictError, match="another writer"):
        registry.promote("support:1")
    assert registry.get("support:production").number == 2


def test_a_verdict_is_never_lost_to_a_race(store, registry: Registry) -> None:
    for _ in range(2):
        add(registry)
    verdict(registry, "support:2")

    def other_writer(path: str) -> None:
        store.objects.before_create = None
        Registry(store, "support").promote("support:2")

    store.objects.before_create = other_writer
    verdict(registry, "support:1", passed=False)
    assert [r.status for r in registry.adapters()] == ["refused", "production"]
    assert [e.event for e in registry.events()] == ["verdict", "promote", "verdict"]


# -- scores


def test_a_score_is_kept_by_what_it_depends_on(store, registry: Registry) -> None:
    log = ScoreLog(store, add(registry))
    assert log.get("support@v1", "digest", "macro_f1") is None
    log.put("support@v1", "digest", "macro_f1", score=0.25, rows=4)
    stored = log.get("support@v1", "digest", "macro_f1")
    assert stored is not None
    assert (stored.score, stored.rows, stored.adapter) == (0.25, 4, "support:1")
    assert log.get("support@v1", "other digest", "macro_f1") is None
    assert log.get("support@v1", "digest", "accuracy") is None
    other = ScoreLog(store, add(registry, weights=b"others"))
    assert other.get("support@v1", "digest", "macro_f1") is None


def test_the_first_score_under_a_name_stays(store, registry: Registry) -> None:
    log = ScoreLog(store, add(registry))
    log.put("support@v1", "digest", "macro_f1", score=0.25, rows=4)
    assert log.put("support@v1", "digest", "macro_f1", score=0.5, rows=4).score == 0.25
