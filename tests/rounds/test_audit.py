"""What is planted is found, with figure, line and remedy; sound data passes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import treering
from tests.rounds.looking import capture, produce, tickets
from treering.errors import NotFoundError, UsageError
from treering.evaluation.audit import AuditLines


def checks(found: treering.Audit) -> dict[str, int]:
    return {check.check: check.findings for check in found.checks if check.findings}


def skipped(found: treering.Audit) -> set[str]:
    return {check.check for check in found.checks if check.skipped}


@pytest.fixture
def sound(store: treering.Store, support: treering.Corpus) -> treering.Corpus:
    """`support@v1`: nothing wrong with it, at 20 held-out records a domain."""
    capture(support, tickets(400, seed=1, origin="human"))
    return support


LINES = AuditLines(thin_heldout=20)


def test_sound_records_pass(store: treering.Store, sound: treering.Corpus) -> None:
    found = treering.audit(store, "support@v1", lines=LINES)
    assert (found.passed, found.findings, found.leaks) == (True, [], [])
    assert (found.rows, found.training_rows, found.heldout_rows, found.subtypes) == (400, 360, 40, 2)
    assert (found.by, skipped(found)) == (["domain", "label"], set())
    assert found == treering.audit(store, "support@v1", lines={"thin_heldout": 20})
    assert treering.Audit.model_validate_json(found.model_dump_json()) == found


def test_small_subtypes_of_one_template_are_found(store: treering.Store, sound: treering.Corpus) -> None:
    mould = [
        {"id": f"m-{i}", "split": "train", "domain": "shop", "label": "warranty", "origin": "human",
         "text": f"Dear team, the {thing} from order {i * 91} broke after {i} weeks and I have a warranty"}
        for i, thing in enumerate(["kettle", "lamp", "phone", "drill", "chair", "radio"])
    ]  # fmt: skip
    capture(sound, [*tickets(300, seed=2, origin="human"), *mould])
    found = treering.audit(store, "support@v2", lines=LINES)
    assert checks(found) == {"small-subtypes": 1, "templates": 1}
    small, template = found.findings
    assert (small.where, small.figure, small.line) == ("shop / warranty", 6, 6)
    assert "at least 1 more" in small.remedy
    assert (template.where, template.figure, template.line) == ("shop / warranty", 1.0, 0.5)
    assert template.says.startswith("6 of 6 from one template: Dear team, the <*> from order <*> broke after <*> weeks")
    assert treering.audit(store, "support@v2", lines={"small_subtype": 5, "template": 1.0, "thin_heldout": 20}).passed


def test_leaks_are_found_within_a_snapshot_and_across_all_of_them(
    store: treering.Store, sound: treering.Corpus
) -> None:
    first = {r["id"]: r["text"] for r in tickets(400, seed=1)}
    planted: list[dict[str, Any]] = [
        # A held-out record of v1 nearly equals a training record of v2; one of v2 a training record of v1 and one of live.
        {"id": "train-v2", "split": "train", "text": f"{first['s1-10']} !"},
        {"id": "held-v2", "split": "heldout", "text": first["s1-11"].upper()},
        {"id": "held-both", "split": "heldout", "text": "a question that comes again in live and nowhere else"},
    ]
    capture(
        sound, [*tickets(300, seed=2, origin="human"), *({"domain": "shop", "label": "refund", **p} for p in planted)]
    )
    live = {"id": "train-live", "split": "train", "text": "A question that comes again in live and nowhere else."}
    capture(sound, [{"domain": "shop", "label": "refund", **live}], seal=False)
    pairs = {
        ref: {(x.heldout_id, x.heldout_in, x.training_id, x.training_in) for x in treering.audit(store, ref).leaks}
        for ref in ("support@v1", "support@v2", "support@live", "support@v1..v2")
    }
    one = ("s1-10", "support@v1", "train-v2", "support@v2")
    two = ("held-v2", "support@v2", "s1-11", "support@v1")
    three = ("held-both", "support@v2", "train-live", "support@live")
    assert pairs == {
        "support@v1": {one, two}, "support@v2": {one, two, three},
        "support@live": {three}, "support@v1..v2": {one, two, three},
    }  # fmt: skip
    found = treering.audit(store, "support@v2")
    exact = next(leak for leak in found.leaks if leak.heldout_id == "held-v2")
    assert exact.similarity == 1.0
    remedies = {f.where: f.remedy for f in found.findings if f.check == "leaks"}
    assert remedies["held-v2"] == "treering annotate support held-v2 --exclude"
    sound.annotate_many([{"id": name, "exclude": True} for name in ("held-v2", "s1-10", "train-live")])
    assert treering.audit(store, "support@v1..v2").leaks == []


def test_synthetic_and_own_output_are_shares_of_the_training_records(
    store: treering.Store, sound: treering.Corpus
) -> None:
    adapter = produce(store, "support", ["support@v1"])
    capture(
        sound,
        [
            *tickets(100, seed=2, origin="synthetic:gpt", domain="faq"),
            *tickets(100, seed=3, origin="human", domain="shop"),
            *tickets(30, seed=4, origin=f"model:{adapter}", domain="shop"),
        ],
    )  # fmt: skip
    found = treering.audit(store, "support@v2", lines={"thin_heldout": 0})
    assert checks(found) == {"synthetic": 1, "own-output": 2}
    by = {(f.check, f.where, f.line): f.figure for f in found.findings}
    assert by == {
        ("synthetic", "domain faq", 0.5): 1.0,
        ("own-output", "support@v2", 0.1): pytest.approx(27 / 207, abs=1e-4),
        ("own-output", "support@v2", 0.0): 3,
    }
    assert {(o.origin, o.training, o.heldout) for o in found.origins} == {
        ("synthetic:gpt", 90, 10), ("human", 90, 10), (f"model:{adapter}", 27, 3),
    }  # fmt: skip


def test_near_duplicates_and_thin_slices_are_found(store: treering.Store, sound: treering.Corpus) -> None:
    copies = [{"id": f"c-{i}", "split": "train", "domain": "help", "label": "login",
               "text": f"i can not log in any more, since {i % 7} days"} for i in range(60)]  # fmt: skip
    capture(sound, [*tickets(200, seed=2), *copies])
    found = treering.audit(store, "support@v2", lines=LINES)
    assert checks(found) == {"near-duplicates": 1, "templates": 1, "thin-heldout": 1}
    figures = {f.check: (f.where, f.figure) for f in found.findings}
    assert figures["near-duplicates"] == ("support@v2", pytest.approx(60 / 260, abs=1e-4))
    assert figures["thin-heldout"] == ("domain help", 0)


def test_what_records_lack_is_skipped_and_said(store: treering.Store) -> None:
    schema = pa.schema([pa.field("vector", pa.list_(pa.float32(), 3)), pa.field("n", pa.int64())])
    numbers = store.create("numbers", schema)
    capture(numbers, [{"vector": [0.0, 1.0, 2.0], "n": i % 3} for i in range(50)])
    found = treering.audit(store, "numbers@v1")
    assert skipped(found) == {"templates", "synthetic", "own-output", "near-duplicates", "leaks"}
    assert (found.by, found.subtypes) == (["domain"], 1)
    assert treering.audit(store, "numbers@v1", by=["n"]).subtypes == 3
    empty = treering.audit(store, "numbers@live")
    assert (empty.rows, empty.passed) == (0, True)
    chat = store.create("chat", "chat")
    capture(chat, [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(40)])
    treering.audit(store, "chat@v1")
    with pytest.raises(NotFoundError, match="no column 'mood'"):
        treering.audit(store, "numbers@v1", by=["mood"])
    with pytest.raises(UsageError, match="told by plain values"):
        treering.audit(store, "numbers@v1", by=["vector"])
    with pytest.raises(UsageError, match="aren't lines of an audit"):
        treering.audit(store, "numbers@v1", lines={"smal": 1})


def test_a_selection_is_audited_for_what_it_chose(store: treering.Store, sound: treering.Corpus) -> None:
    store.load("support@v1").select(rows=100, name="some")
    found = treering.audit(store, "support/some")
    assert (found.rows, found.training_rows) == (100, 100)
