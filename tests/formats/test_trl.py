"""TRL's rows become the record type that fits each form, also as the real library and datasets write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.errors import UsageError
from treering.formats import Unfit
from treering.formats.chat import original
from treering.formats.trl import TRLImporter
from treering.schema import RecordType

CHAT, PREFERENCE, LABELLED = (RecordType.of(name) for name in ("chat", "preference", "labelled"))
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "A."), ("assistant", "B.")))


def fed(value: Any, target: RecordType = CHAT) -> Any:
    (outcome,) = TRLImporter(target, "/here/rows.jsonl").feed(1, value, json.dumps(value).encode())
    if not isinstance(outcome, Unfit):
        assert target.validate([outcome.record]).refused == []
    return outcome


def calls(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


def test_arguments_that_are_an_object_keep_the_order_of_their_keys() -> None:
    record = fed({"messages": [USER, calls({"z": {"b": None}, "a": [1]})], "tools": [{"z": 1, "a": 2}]}).record
    assert record["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"z":{"b":null},"a":[1]}'
    assert record["tools"] == '[{"z":1,"a":2}]'


def test_thinking_is_reasoning_and_is_put_back_as_thinking() -> None:
    said = [USER, {"role": "assistant", "content": "A.", "thinking": "Hm."}]
    record = fed({"messages": said}).record
    assert record["messages"][1] == {"role": "assistant", "content": "A.", "reasoning_content": "Hm."}
    assert original(record["messages"], record["meta"]["kept"]["messages"]) == said
    kept = fed({"messages": [USER, {"role": "assistant", "content": "A.", "reasoning_content": "Hm."}]}).record
    assert "meta" not in kept


def test_prompt_and_completion_become_one_conversation() -> None:
    text = fed({"prompt": "Q?", "completion": "A."}).record
    assert text["messages"] == [USER, GOOD]
    assert text["meta"] == {"trl": {"prompt": 1, "text": ["prompt", "completion"]}}
    said = fed({"prompt": [USER, GOOD, USER], "completion": [GOOD]}).record
    assert said["messages"] == [USER, GOOD, USER, GOOD]
    assert said["meta"] == {"trl": {"prompt": 3}}


@pytest.mark.parametrize("label", [True, False])
def test_a_verdict_on_a_completion_is_an_annotation(label: bool) -> None:
    found = fed({"prompt": [USER], "completion": [GOOD], "label": label})
    assert found.annotations == ({"outcome": label, "quality": float(label), "by": "trl"},)
    assert isinstance(fed({"prompt": "a", "completion": "b", "label": "good"}), Unfit)


def test_preferences_with_and_without_a_prompt() -> None:
    record = fed({"prompt": "Q?", "chosen": "A.", "rejected": "B."}, PREFERENCE).record
    assert (record["prompt"], record["chosen"], record["rejected"]) == ([USER], [GOOD], [BAD])
    implicit = fed({"chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 0.7}, PREFERENCE).record
    assert (implicit["prompt"], implicit["chosen"], implicit["rejected"]) == ([USER], [GOOD], [BAD])
    assert implicit["meta"] == {"trl": {"implicit_prompt": True}, "kept": {"score": 0.7}}


@pytest.mark.parametrize("row", [{"chosen": "c", "rejected": "r"}, {"chosen": [GOOD], "rejected": [BAD]}])
def test_a_preference_without_a_prompt_anywhere_says_what_to_add(row: dict[str, Any]) -> None:
    (unfit,) = TRLImporter(PREFERENCE, "file").feed(1, row, b"")
    assert isinstance(unfit, Unfit)
    assert "add `prompt`" in str(unfit.problems[0])


def test_an_implicit_prompt_is_the_one_that_trl_finds() -> None:
    trl = pytest.importorskip("trl.data_utils")
    for chosen, rejected in (
        ([USER, GOOD], [USER, BAD]),
        ([USER, GOOD, USER, GOOD], [USER, GOOD, USER, BAD]),
        ([USER, BAD, USER, GOOD], [USER, BAD, USER, BAD, USER, GOOD]),
    ):
        theirs = trl.maybe_extract_prompt({"chosen": chosen, "rejected": rejected})
        ours = fed({"chosen": chosen, "rejected": rejected}, PREFERENCE).record
        assert {name: ours[name] for name in ("prompt", "chosen", "rejected")} == theirs


def test_text_needs_a_record_type_of_its_own_and_says_so(store: treering.Store) -> None:
    import pyarrow as pa

    with pytest.raises(UsageError, match="a field `text`"):
        fed({"text": "Once."}, LABELLED)
    with pytest.raises(UsageError, match="can't fill"):
        fed({"text": "Once."}, RecordType.of("tokens"))
    own = RecordType.of(pa.schema([("text", pa.string()), ("lang", pa.string())]))
    assert fed({"text": "Once.", "lang": "en"}, own).record.items() >= {"text": "Once.", "lang": "en"}.items()
    assert (
        fed({"text": "Once.", "label": "tale"}, LABELLED).record.items() >= {"text": "Once.", "label": "tale"}.items()
    )


@pytest.mark.parametrize(
    ("row", "target", "schema"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, CHAT, "preference"),
        ({"prompt": "a", "completion": "b"}, PREFERENCE, "chat"),
        ({"messages": [USER]}, PREFERENCE, "chat"),
        ({"text": "a", "label": "b"}, CHAT, "labelled"),
    ],
)
def test_each_form_names_the_record_type_it_needs(row: dict[str, Any], target: RecordType, schema: str) -> None:
    with pytest.raises(UsageError, match=f"--schema {schema}") as failure:
        fed(row, target if row.keys() != {"text", "label"} else RecordType.of("preference"))
    assert failure.value.code == "wrong-record-type"


def test_a_prompt_alone_fits_nothing() -> None:
    assert "prompt and completion" in str(fed({"prompt": "a"}).problems[0])


def test_rows_that_datasets_wrote_as_json_and_parquet_come_in_alike(store: treering.Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "messages": [USER, calls({"city": "Rome"}), {"role": "tool", "name": "f", "content": "3"}, GOOD],
            "source": "a",
        },
        {
            "messages": [USER, calls({"days": 3, "unit": "h"}), {"role": "tool", "name": "f", "content": "4"}, BAD],
            "source": "b",
        },
    ]
    table = datasets.Dataset.from_list(rows)
    table.to_json(tmp_path / "rows.jsonl")
    table.to_parquet(tmp_path / "rows.parquet")
    said = []
    for name in ("rows.jsonl", "rows.parquet"):
        corpus = store.create(name.replace(".", "_"), "chat")
        done = corpus.capture_file(str(tmp_path / name), format="trl")
        assert (done.stored, done.refused) == (2, 0)
        found = store.live(corpus.name).to_table().to_pylist()
        said.append(sorted(json.dumps([without(one) for one in row["messages"]], sort_keys=True) for row in found))
    assert said[0] == said[1]
    # datasets gives every call the keys of all calls, and null where there is none: what is null there wasn't said.
    text = json.loads(said[1][0])[1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(text).keys() <= {"city", "days", "unit"}


def without(message: dict[str, Any]) -> dict[str, Any]:
    """A message as far as it says something; nulls in arguments are datasets' own."""
    made = {key: one for key, one in message.items() if one is not None}
    for call in made.get("tool_calls", ()):
        arguments = json.loads(call["function"]["arguments"])
        call["function"]["arguments"] = json.dumps({key: one for key, one in arguments.items() if one is not None})
    return made
