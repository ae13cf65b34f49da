"""Files of agents and telemetry all the way into a corpus: found out, stored once, and said about."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.formats import test_atif, test_claude_code, test_codex, test_hooks, test_langfuse, test_langsmith
from tests.formats.speaking import CHAT, Traced
from tests.formats.test_openinference import attributes
from treering.formats.known import recognise


def spans(marked: bool = False) -> Any:
    traced = Traced()
    if marked:
        traced.record(attributes())
    else:
        parts = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
        answer = [{"role": "assistant", "parts": [{"type": "text", "content": "ho"}], "finish_reason": "stop"}]
        traced.record(
            {
                "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5", "gen_ai.conversation.id": "c",
                "gen_ai.input.messages": json.dumps(parts), "gen_ai.output.messages": json.dumps(answer),
                "error.type": "timeout",
            }
        )  # fmt: skip
    return traced.spans_json()


def transcript() -> list[Any]:
    script = test_claude_code.Transcript()
    script.user("hi")
    script.assistant("hello")
    script.user("more")
    script.assistant("API Error", model="<synthetic>", isApiErrorMessage=True)
    return script.lines


def rollout() -> list[Any]:
    one = test_codex.Rollout()
    one.user("hi")
    one.answer("hello")
    one.event("turn_aborted", reason="interrupted")
    return one.lines


def payloads() -> list[Any]:
    return [
        test_hooks.claude("UserPromptSubmit", prompt="hi"),
        test_hooks.claude("StopFailure", last_assistant_message="ho", error="overloaded"),
    ]


#: format → values of one file
SAMPLES: dict[str, Callable[[], list[Any]]] = {
    "otlp": lambda: [spans()],
    "openinference": lambda: [spans(marked=True)],
    "langfuse": lambda: [test_langfuse.observation(level="ERROR", statusMessage="late"), test_langfuse.score()],
    "langsmith": lambda: [test_langsmith.run(feedback_stats={"ok": {"n": 1, "avg": 1.0}})],
    "atif": lambda: [test_atif.trajectory()],
    "claude-code": transcript,
    "codex": rollout,
    "hooks": payloads,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_value_is_recognised_by_its_format_alone(name: str) -> None:
    for value in SAMPLES[name]():
        assert [importer.name for importer in recognise(value, CHAT)[0]] == [name]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_found_out_and_stored_once_wherever_it_lies(name: str, store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("agents", "chat")
    values = SAMPLES[name]()
    lines = "".join(json.dumps(one) + "\n" for one in values).encode()
    first, second = tmp_path / "trace.jsonl", tmp_path / "elsewhere" / "trace.jsonl.gz"
    first.write_bytes(lines)
    second.parent.mkdir()
    second.write_bytes(gzip.compress(lines))
    summary = corpus.capture_file(str(first))
    assert (summary.files[0].format, summary.stored, summary.refused) == (name, 1, 0)
    for path in (first, second):
        again = corpus.capture_file(str(path))
        assert (again.stored, again.duplicates, again.annotations, again.refused) == (0, 1, 0, 0)
    (row,) = store.live("agents").to_table().to_pylist()
    assert row["messages"][0]["role"] in ("system", "user")
    assert json.loads(row["meta"])["format"] == ("otlp" if name == "openinference" else name)
    said = corpus.annotations(key="outcome").to_pylist()
    assert len(said) == (0 if name in ("openinference", "atif") else 1)


@pytest.mark.parametrize("name", ["otlp", "openinference", "langfuse", "langsmith", "atif"])
def test_a_file_that_is_one_json_document_is_taken_too(name: str, store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("agents", "chat")
    values = SAMPLES[name]()
    path = tmp_path / "export.json"
    path.write_text(json.dumps(values[0] if name in ("otlp", "openinference", "atif") else values, indent=2))
    summary = corpus.capture_file(str(path))
    assert (summary.files[0].format, summary.stored, summary.refused) == (name, 1, 0)


def test_a_trace_that_langfuses_page_downloads_keeps_its_user_and_scores(store: treering.Store, tmp_path: Path) -> None:
    inner = test_langfuse.observation()
    del inner["sessionId"], inner["userId"]
    trace = {
        "id": "trace-1",
        "sessionId": "s-1",
        "userId": "u-1",
        "observations": [inner],
        "scores": [test_langfuse.score()],
    }
    corpus = store.create("agents", "chat")
    path = tmp_path / "trace-trace-1.json"
    path.write_text(json.dumps(trace, indent=2))
    summary = corpus.capture_file(str(path))
    assert (summary.stored, summary.refused) == (1, 0)
    assert corpus.annotations(key="quality").to_pylist()[0]["value"] == "0.5"


def test_rows_of_langfuses_csv(store: treering.Store, tmp_path: Path) -> None:
    row = {name: one if isinstance(one, str) else json.dumps(one) for name, one in test_langfuse.observation().items()}
    path = tmp_path / "observations.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    corpus = store.create("agents", "chat")
    summary = corpus.capture_file(str(path))
    assert (summary.files[0].format, summary.stored, summary.refused) == ("langfuse", 1, 0)


def test_what_doesnt_fit_is_quarantined_and_the_rest_is_stored(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("agents", "chat")
    traced = Traced()
    traced.record({"gen_ai.operation.name": "chat", "gen_ai.input.messages": '[{"role": "user", "parts": [{"ty'})
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps(traced.spans_json()) + "\n" + json.dumps(spans()) + "\n")
    summary = corpus.capture_file(str(path))
    assert (summary.stored, summary.refused) == (1, 1)
    (line, (problem,)) = summary.problems[0]
    assert line == 1
    assert problem.kind == "bad-json"


@pytest.mark.parametrize("kind", ["auto", "otlp"])
def test_export_requests_one_a_line_are_read_by_lines(store: treering.Store, tmp_path: Path, kind: str) -> None:
    requests = [json.loads(json.dumps(spans()).replace('"c"', f'"c{n}"')) for n in range(4)]
    requests[2]["resourceSpans"] *= 2
    requests[2]["resourceSpans"][0] = {"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
    resources = [part for one in requests for part in one["resourceSpans"]]
    (tmp_path / "document.json").write_text(json.dumps({"resourceSpans": resources}))
    lines, document = store.create("lines", "chat"), store.create("document", "chat")
    done = lines.capture_file(str(tmp_path / "lines.jsonl"), format=kind)
    assert (done.read, done.stored, done.refused) == (4, 4, 1)  # what is wrong with one resource is no fault of another
    assert done.problems[0][0] == 3
    whole = document.capture_file(str(tmp_path / "document.json"), format=kind)
    assert (whole.read, whole.stored, whole.refused) == (5, 4, 1)
    rows, others = (
        store.live(name).to_table(["id", "messages", "meta"]).sort_by("id") for name in ("lines", "document")
    )
    assert rows.drop_columns("meta") == others.drop_columns("meta")


def test_formats_of_conversations_refuse_a_corpus_of_another_type(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("labels", "labelled")
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(SAMPLES["codex"]()[0]))
    with pytest.raises(treering.UsageError) as refused:
        corpus.capture_file(str(path), format="codex")
    assert refused.value.code == "wrong-record-type"
