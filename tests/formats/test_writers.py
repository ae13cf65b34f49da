"""Formats out, as functions from records to bytes: what comes back from them, and what they say they have no place for."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.errors import InvalidRecordError, UsageError
from treering.formats.base import Found
from treering.formats.known import find_importer
from treering.formats.writers import Exporter, find_exporter
from treering.formats.writers.base import EXPORTERS
from treering.schema import RecordType, parse_json

from .chats import conversations, json_texts, objects, texts, tools

CHAT, PREFERENCE, LABELLED = (RecordType.of(name) for name in ("chat", "preference", "labelled"))


def batch_of(kind: RecordType, records: list[dict[str, Any]]) -> pa.RecordBatch:
    """The records as a table holds them."""
    found = kind.validate([{"id": f"r{n}", **record} for n, record in enumerate(records)])
    assert found.refused == []
    return found.batch


def written(name: str, batch: pa.RecordBatch, **how: Any) -> tuple[bytes, Exporter]:
    exporter = find_exporter(name)(batch.schema, **how)
    return exporter.encode(batch) + exporter.finish(), exporter


def lines(name: str, kind: RecordType, *records: dict[str, Any]) -> list[Any]:
    return [parse_json(line) for line in written(name, batch_of(kind, list(records)))[0].splitlines()]


def read_back(name: str, kind: RecordType, data: bytes) -> pa.RecordBatch:
    """What the importer of the format makes of a file, as a table holds it."""
    importer = find_importer(name)(kind, "file")
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        found += list(importer.feed(number, parse_json(line), line))
    found += list(importer.finish())
    assert all(isinstance(one, Found) for one in found), found
    return batch_of(kind, [one.record for one in found])


def chats(arguments: Any, *, thoughts: bool) -> Any:
    conversation = conversations(arguments, thoughts=thoughts)
    return st.lists(st.fixed_dictionaries({"messages": conversation, "tools": tools}), min_size=1, max_size=3)


def preferences(arguments: Any, *, thoughts: bool) -> Any:
    side = conversations(arguments, thoughts=thoughts)
    record = st.fixed_dictionaries({"prompt": side, "chosen": side, "rejected": side, "tools": tools})
    return st.lists(record, min_size=1, max_size=3)


# ---- round trips


@given(chats(texts, thoughts=False) | chats(json_texts(objects), thoughts=False))
def test_conversations_come_back_from_openais_form_byte_for_byte(records: list[dict[str, Any]]) -> None:
    batch = batch_of(CHAT, records)
    data, exporter = written("openai", batch)
    assert exporter.rows == len(records)
    assert len(data.decode().splitlines()) == len(records)  # also for readers that break lines at U+2028
    back = read_back("openai", CHAT, data)
    assert back.column("messages").equals(batch.column("messages"))  # arguments too: the text, not what it means
    again, _ = written("openai", back)
    if all(record["tools"] is None for record in records):
        assert again == data
    for kept, came in zip(back.column("tools").to_pylist(), batch.column("tools").to_pylist(), strict=True):
        assert (kept and json.loads(kept)) == (came and json.loads(came))


@given(chats(json_texts(objects), thoughts=True))
def test_conversations_come_back_from_trls_form(records: list[dict[str, Any]]) -> None:
    batch = batch_of(CHAT, records)
    back = read_back("trl", CHAT, written("trl", batch)[0])
    assert _with_parsed_arguments(back) == _with_parsed_arguments(batch)


@given(preferences(json_texts(objects), thoughts=False))
def test_preferences_come_back_from_both_forms(records: list[dict[str, Any]]) -> None:
    batch = batch_of(PREFERENCE, records)
    back = read_back("openai", PREFERENCE, written("openai", batch)[0])
    for side in ("prompt", "chosen", "rejected"):
        assert back.column(side).equals(batch.column(side))
    plain = [
        {**record, **{s: [_without(m, "weight") for m in record[s]] for s in ("prompt", "chosen", "rejected")}}
        for record in records
    ]
    batch = batch_of(PREFERENCE, plain)
    back = read_back("trl", PREFERENCE, written("trl", batch)[0])
    assert _with_parsed_arguments(back) == _with_parsed_arguments(batch)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": texts, "label": texts},
            optional={"meta": json_texts(objects), "domain": texts, "subject": texts, "ts": st.datetimes().map(
                lambda ts: ts.isoformat() + "+00:00"
            )},
        ),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_records_come_back_as_the_same_records(records: list[dict[str, Any]]) -> None:
    batch = batch_of(LABELLED, records)
    data, exporter = written("records", batch)
    assert read_back("records", LABELLED, data).equals(batch)
    assert not exporter.dropped


@given(chats(texts, thoughts=True))
def test_conversations_come_back_as_the_same_records(records: list[dict[str, Any]]) -> None:
    batch = batch_of(CHAT, records)
    assert read_back("records", CHAT, written("records", batch)[0]).equals(batch)


def _with_parsed_arguments(batch: pa.RecordBatch) -> Any:
    """Records with the JSON in them parsed: as an object, arguments have no spaces and no escapes of their own."""

    def parsed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: json.loads(part) if key in ("arguments", "tools") and part is not None else parsed(part)
                for key, part in value.items()
                if key != "id" or "function" in value
            }
        return [parsed(part) for part in value] if isinstance(value, list) else value

    return parsed(batch.to_pylist())


def _without(message: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}


# What files may say beyond our fields: importers keep it, and it comes back.
FILE_LINES = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None, "refusal": "I can't say."},
        ],
        "parallel_tool_calls": False,
    },
    {
        "messages": [
            {"role": "user", "content": "hi", "name": "ann"},
            {"role": "assistant", "tool_calls": [], "content": "hello", "weight": 0},
        ],
        "tools": [{"function": {"name": "f"}, "type": "function"}],
    },
]  # fmt: skip
TRL_LINES: list[tuple[RecordType, dict[str, Any]]] = [
    (CHAT, {"prompt": "The sky is", "completion": " blue."}),
    (CHAT, {"prompt": "The sky is", "completion": " green.", "label": False}),
    (CHAT, {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]}),
    (CHAT, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "hm"}]}),
    (PREFERENCE, {"prompt": "hi", "chosen": "hello", "rejected": "no"}),
    (
        PREFERENCE,
        {
            "chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}],
        },
    ),
]


def _plain(value: Any) -> Any:
    """Without nulls: a member that is null says what a missing one says."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("line", FILE_LINES)
def test_what_openais_file_says_beyond_our_fields_comes_back(line: dict[str, Any]) -> None:
    batch = read_back("openai", CHAT, json.dumps(line).encode() + b"\n")
    data, exporter = written("openai", batch)
    assert _plain(json.loads(data)) == _plain(line)
    assert "meta" not in exporter.dropped


@pytest.mark.parametrize(("kind", "line"), TRL_LINES)
def test_every_form_of_trls_comes_back(kind: RecordType, line: dict[str, Any]) -> None:
    batch = read_back("trl", kind, json.dumps(line).encode() + b"\n")
    assert json.loads(written("trl", batch)[0]) == line


def test_meta_of_ones_own_that_looks_like_what_importers_keep_does_no_harm() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    for meta in ({"kept": 5}, {"kept": {"messages": {"0": "no message"}}}, {"kept": "x", "trl": [1]}):
        for name in ("openai", "trl"):
            assert lines(name, CHAT, {"messages": said, "meta": meta})[0]["messages"] == said


FORGED: list[dict[str, Any]] = [
    {"trl": {"text": 5}},
    {"trl": {"prompt": True, "text": [["x"], "prompt"]}},
    {"trl": {"prompt": -1}},
    {"kept": {"tools": 5, "input": 7}},
    {"kept": {"functions": "zz", "parallel_tool_calls": 5}},
    *(
        {"kept": {"messages": {"1": over}}}
        for over in ({"content": 7}, {"role": None}, {"role": "user"}, {"tool_calls": "zz"}, {"content": "other"}, [1])
    ),
]


@pytest.mark.parametrize("meta", FORGED)
def test_meta_that_came_with_a_record_changes_no_line_and_ends_no_export(meta: dict[str, Any]) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    for name in ("openai", "trl"):
        data, exporter = written(name, batch_of(CHAT, [{"messages": said, "meta": meta}]))
        (line,) = map(json.loads, data.splitlines())
        assert line["messages"] == said
        assert "tools" not in line
        if name == "openai":
            assert line == {"messages": said}
            assert exporter.dropped["meta"] or exporter.dropped.keys() - {"id"}


def test_members_of_another_type_than_openais_are_named() -> None:
    said = [{"role": "assistant", "content": "yo", "refusal": 5, "audio": "a"}]
    batch = read_back("openai", CHAT, json.dumps({"messages": said}).encode() + b"\n")
    data, exporter = written("openai", batch)
    assert json.loads(data) == {"messages": [{"role": "assistant", "content": "yo"}]}
    assert (exporter.dropped["messages.refusal"], exporter.dropped["messages.audio"]) == (1, 1)


def test_a_file_with_calls_as_they_were_once_goes_out_as_it_came() -> None:
    line = {
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "function_call": {"name": "get", "arguments": "{}"}},
            {"role": "function", "name": "get", "content": "rain"},
        ],
        "functions": [{"name": "get", "parameters": {}}],
    }
    data, _ = written("openai", read_back("openai", CHAT, json.dumps(line).encode() + b"\n"))
    assert json.loads(data) == line


# ---- the forms themselves


CALLED: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "reasoning_content": "look it up",
            "tool_calls": [{"id": "c1", "function": {"name": "get", "arguments": '{"b": 1.0,"a": [2e0]}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "get", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "weight": 1},
    ],
    "tools": '[{"type": "function", "function": {"name": "get", "parameters": {"z": 1.50, "a": {}}}}]',
}


def test_openais_arguments_are_the_text_that_was_captured_and_tools_keep_their_numbers_and_order() -> None:
    data, exporter = written("openai", batch_of(CHAT, [CALLED]))
    assert rb'"arguments":"{\"b\": 1.0,\"a\": [2e0]}"' in data
    assert b'"tools":' + CALLED["tools"].encode() in data
    assert b"reasoning_content" not in data
    assert exporter.dropped == {"id": 1, "messages.reasoning_content": 1}


def test_trls_arguments_are_the_object_that_the_text_says() -> None:
    data, exporter = written("trl", batch_of(CHAT, [CALLED]))
    assert b'"arguments":{"b": 1.0,"a": [2e0]}' in data
    assert b'"reasoning_content":"look it up"' in data
    assert exporter.dropped == {"id": 1, "messages.weight": 1}


def test_preferences_take_openais_dpo_form_and_trls() -> None:
    record = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "tools": [{"type": "function"}],
    }
    assert lines("openai", PREFERENCE, record) == [
        {
            "input": {"messages": record["prompt"], "tools": record["tools"]},
            "preferred_output": record["chosen"],
            "non_preferred_output": record["rejected"],
        }
    ]
    assert lines("trl", PREFERENCE, record) == [record]


def test_a_text_and_its_label_become_a_question_and_an_answer() -> None:
    question, answer = {"role": "user", "content": "my card"}, {"role": "assistant", "content": "card_arrival"}
    record = {"text": "my card", "label": "card_arrival", "domain": "banking"}
    assert lines("trl", LABELLED, record) == [{"prompt": [question], "completion": [answer]}]
    assert lines("openai", LABELLED, record) == [{"messages": [question, answer]}]
    assert written("trl", batch_of(LABELLED, [record]))[1].dropped == {"id": 1, "domain": 1}


def test_token_ids_become_input_ids() -> None:
    assert lines("trl", RecordType.of("tokens"), {"tokens": [1, 2, 3]}) == [{"input_ids": [1, 2, 3]}]


def test_a_record_type_of_ones_own_is_told_by_its_columns() -> None:
    kind = RecordType.of(pa.schema([("text", pa.string()), ("label", pa.string()), ("mood", pa.string())]))
    data, exporter = written("openai", batch_of(kind, [{"text": "a", "label": "b", "mood": "glad"}]))
    assert json.loads(data)["messages"][1]["content"] == "b"
    assert exporter.dropped == {"id": 1, "mood": 1}
    for name in ("openai", "trl"):
        with pytest.raises(UsageError, match="no form for records of the columns"):
            find_exporter(name)(pa.schema([("id", pa.string()), ("pixels", pa.binary())]))


UNFIT = [
    ("openai", {"role": "assistant", "reasoning_content": "hm"}, "messages.0.content"),
    ("openai", {"role": "user"}, "messages.0.content"),
    ("openai", {"role": "tool", "content": "x"}, "messages.0.tool_call_id"),
    ("openai", {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_calls.0.id"),
    ("trl", {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{no json"}}]}, "arguments"),
    ("trl", {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "arguments"),
    ("trl", {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":NaN}'}}]}, "arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message", "where"), UNFIT)
def test_a_record_that_a_format_cant_hold_is_named_or_left_out_and_counted(
    name: str, message: dict[str, Any], where: str
) -> None:
    batch = batch_of(CHAT, [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [message]}])
    with pytest.raises(InvalidRecordError, match=rf"record r1 has no form in {name}: .*{where}") as error:
        written(name, batch)
    assert "--skip-unfit" in (error.value.hint or "")
    data, exporter = written(name, batch, skip=True)
    assert (data.count(b"\n"), exporter.rows, [one.id for one in exporter.left_out]) == (1, 1, ["r1"])


def test_no_text_steers_a_terminal_or_ends_a_line() -> None:
    said = "a\x9b31m red\u2028b\x85c\x1b]0;title\x07d\x7fe"
    call = {"id": "c", "function": {"name": "f", "arguments": json.dumps({"x": said}, ensure_ascii=False)}}
    record = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "tool_calls": [call]}]}
    for name in ("records", "openai", "trl"):
        text = written(name, batch_of(CHAT, [record]))[0].decode()
        assert not [c for c in text.rstrip("\n") if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029"]
        assert json.loads(text)["messages"][0]["content"] == said


def test_weights_that_openai_doesnt_know_are_named() -> None:
    said = [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b", "weight": 7}]
    data, exporter = written("openai", batch_of(CHAT, [{"messages": said}]))
    assert b"weight" not in data
    assert exporter.dropped["messages.weight"] == 1


def test_json_has_no_form_for_nan_and_bytes() -> None:
    kind = RecordType.of(pa.schema([("score", pa.float32())]))
    batch = batch_of(kind, [{"score": 0.1}, {"score": float("nan")}])
    with pytest.raises(InvalidRecordError, match="score: expected a value that JSON can hold"):
        written("records", batch)
    assert read_back("records", kind, written("records", batch.slice(0, 1))[0]).equals(batch.slice(0, 1))
    with pytest.raises(UsageError, match=r"no form for bytes: raw \(binary\)"):
        find_exporter("records")(pa.schema([("raw", pa.binary())]))


# ---- tables


def test_parquet_keeps_the_arrow_schema_and_is_written_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from treering.formats.writers import tables as module

    monkeypatch.setattr(module, "_GROUP_ROWS", 2)
    batch = batch_of(CHAT, [CALLED] * 5)
    exporter = find_exporter("parquet")(batch.schema)
    first = exporter.encode(batch.slice(0, 2))
    assert len(first) > 200  # what is complete leaves memory
    data = first + exporter.encode(batch.slice(2)) + exporter.finish()
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.num_row_groups == 3
    assert file.schema_arrow.equals(batch.schema)
    assert b"lance-schema:unenforced-primary-key" in file.schema_arrow.field("id").metadata
    assert file.read().equals(pa.Table.from_batches([batch]))


def test_an_empty_export_is_a_file_that_reads_as_no_records() -> None:
    batch = batch_of(CHAT, [])
    assert written("records", batch)[0] == b""
    assert pq.read_table(io.BytesIO(written("parquet", batch)[0])).num_rows == 0
    assert pa.ipc.open_stream(written("hf", batch)[0]).read_all().num_rows == 0


def test_pyproject_declares_the_formats_that_there_are() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    points = declared["project"]["entry-points"]["treering.exporters"]
    assert points == dict(EXPORTERS)
    for name in EXPORTERS:
        assert find_exporter(name).name == name
