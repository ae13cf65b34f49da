"""What the commands do when all goes well: data on stdout, talk on stderr, table and JSON from the same model."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import treering
from tests.waiting import wait_for
from treering.cli import output

from .conftest import Run, jsonl, labelled


def test_init_makes_a_store_once(run: Run, where: Path) -> None:
    first, second = run("init", "--json").data, run("init", "--json").data
    assert first == {"store": str(where / ".treering"), "created": True}
    assert second == {"store": str(where / ".treering"), "created": False}


def test_only_init_and_demo_make_a_store(run: Run, where: Path) -> None:
    for words in (["create", "support", "--schema", "chat"], ["status"], ["capture", "support", "-"]):
        assert run(*words).code == 4
    assert list(where.iterdir()) == []


def test_the_store_is_the_options_then_the_environments_then_the_files_then_the_default(
    run: Run, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("init", "--json").data["store"] == str(where / ".treering")
    (where / "treering.toml").write_text('store = "from-file"\n')
    assert run("init", "--json").data["store"] == str(where / "from-file")
    monkeypatch.setenv("TREERING_STORE", "from-environment")
    assert run("init", "--json").data["store"] == str(where / "from-environment")
    assert run("init", "--store", "from-option", "--json").data["store"] == str(where / "from-option")
    assert run("--store", "before-the-verb", "init", "--json").data["store"] == str(where / "before-the-verb")


def test_a_corpus_from_creation_to_its_second_snapshot(support: Run, where: Path) -> None:
    records = labelled(60)
    file = jsonl(where / "records.jsonl", records)
    captured = support("capture", "support", file, "--json").data
    assert (captured["read"], captured["stored"], captured["refused"]) == (60, 60, 0)

    sealed = support("snapshot", "live", "--to", "support@v1", "-m", "the first", "--json").data
    assert (sealed["ref"], sealed["rows"], sealed["message"]) == ("support@v1", 60, "the first")
    assert sealed["digest"] == treering.open(where / ".treering").corpus("support").snapshots()[0].digest

    support("capture", "support", "-", stdin="".join(json.dumps(r) + "\n" for r in labelled(7, topic="late")))
    status = support("status", "support", "--json").data
    assert (status["live_rows"], status["sealed_rows"], status["newest"]) == (7, 60, "support@v1")
    assert [row["corpus"] for row in support("status", "--json").data] == ["support"]

    log = support("log", "support", "--json").data
    assert log["live_rows"] == 7
    assert [(s["ref"], s["rows"], s["message"]) for s in log["snapshots"]] == [("support@v1", 60, "the first")]

    shown = support("show", "support@v1", "--json").data
    assert shown["counts"]["label"] == {"refund": 60}
    assert shown["heldout_rows"] == shown["counts"]["split"]["heldout"]
    assert shown["parts"][0]["digest"] == sealed["digest"]
    assert support("show", "support@live", "--json").data["counts"] is None


def test_a_file_captured_twice_adds_nothing(support: Run, where: Path) -> None:
    file = jsonl(where / "records.jsonl", [{"text": f"t{i}", "label": "a"} for i in range(30)])
    assert support("capture", "support", file, "--json").data["stored"] == 30
    again = support("capture", "support", file, "--json").data
    assert (again["stored"], again["duplicates"]) == (0, 30)


def test_an_empty_file_is_said_to_be_empty_and_adds_nothing(support: Run, where: Path) -> None:
    done = support("capture", "support", jsonl(where / "none.jsonl", [""]), "--json")
    assert (done.code, done.data["stored"]) == (0, 0)
    (where / "none.jsonl").write_text("")
    done = support("capture", "support", str(where / "none.jsonl"), "--json")
    assert (done.code, done.data["read"]) == (0, 0)
    assert "nothing was captured" in done.err


def test_sealing_an_empty_live_seals_nothing_and_says_so(support: Run) -> None:
    done = support("snapshot", "live", "--to", "support", "--json")
    assert (done.code, done.data) == (0, None)
    assert done.lines == ["support@live is empty: nothing was sealed"]
    assert support("log", "support", "--json").data["snapshots"] == []


def test_head_prints_an_array_of_whole_records(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "records.jsonl", labelled(20)))
    records = support("head", "support@live", "-n", "3", "--json").data
    assert len(records) == 3
    assert set(records[0]) == {
        *("id", "session_id", "subject", "domain", "ts", "split", "origin", "meta"),
        *("text", "label"),
    }
    assert support("head", "support@live", "-n", "2", "-c", "label", "--json").data == [{"label": "refund"}] * 2
    assert support("head", "support@live", "-n", "0", "--json").data == []
    assert len(support("head", "support@live", "-n", "99", "--json").data) == 20


def test_one_bad_line_in_ten_thousand_is_named_and_the_rest_is_stored(support: Run, where: Path) -> None:
    lines: list[Any] = labelled(10_000)
    lines[6_789] = '{"text": "cut o'
    done = support("capture", "support", jsonl(where / "many.jsonl", lines))
    assert done.code == 3
    assert "line 6,790: record: expected a JSON object" in done.err
    assert "9,999" in done.out
    data = support("capture", "support", str(where / "many.jsonl"), "--json").data
    assert (data["read"], data["stored"], data["duplicates"], data["refused"]) == (10_000, 0, 9_999, 1)
    assert [(Path(one["source"]).name, one["line"]) for one in data["refused_lines"]] == [("many.jsonl", 6_790)]


def test_several_files_come_to_one_summary_with_a_line_for_each(support: Run, where: Path) -> None:
    jsonl(where / "a.jsonl", labelled(3))
    jsonl(where / "b.jsonl", [*labelled(2, topic="b"), "{"])
    (where / "c.jsonl.gz").write_bytes(b"no archive")
    done = support("capture", "support", "a.jsonl", "[bc].jsonl*", "--json")
    assert done.code == 6
    assert "c.jsonl.gz" in done.err
    assert [(one["source"], one["format"], one["records"], one["refused"]) for one in done.data["files"]] == [
        ("a.jsonl", "records", 3, 0), ("b.jsonl", "records", 2, 1), ("c.jsonl.gz", None, 0, 0),
    ]  # fmt: skip
    assert done.data["stored"] == 5
    table = support("capture", "support", "a.jsonl", "b.jsonl")
    assert table.code == 3
    assert "b.jsonl line 3" in table.err
    assert max(map(len, table.out.splitlines())) <= 80


def test_the_format_is_named_and_what_was_passed_over_is_counted(run: Run, where: Path) -> None:
    run("init")
    run("create", "chats", "--schema", "chat")
    path = jsonl(where / "t.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    done = run("capture", "chats", path)
    assert done.code == 0
    assert "trl" in done.out
    assert "annotations" in done.out


def test_of_a_file_that_cant_be_read_to_its_end_what_was_stored_is_said(support: Run, where: Path) -> None:
    text = "".join(json.dumps({"text": os.urandom(200).hex(), "label": "l"}) + "\n" for _ in range(3_000))
    data = gzip.compress(text.encode())
    (where / "cut.jsonl.gz").write_bytes(data[: len(data) // 2])
    done = support("capture", "support", "cut.jsonl.gz", "--json")
    assert done.code == 6
    assert done.data["stored"] > 100
    assert done.data["files"][0]["error"] == json.loads(done.lines[-1])["error"]["message"]
    again = support("capture", "support", "cut.jsonl.gz")
    assert (again.code, "stored by an earlier run" in again.out or "duplicates" in again.out) == (6, True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_a_capture_is_told_how_far_it_came(support: Run, where: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "treering.cli", "capture", "support", "-", "--format", "records"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write("".join(json.dumps(one) + "\n" for one in labelled(9_000)))  # more than a pipe holds
    process.stdin.flush()
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert re.search(r"stopped after [1-9][\d,]* lines", err)
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_a_column_that_the_corpus_lacks_is_refused_with_the_way_to_add_it(support: Run, where: Path) -> None:
    (where / "more.csv").write_text("text,label,mood\na,b,glad\n")
    done = support("capture", "support", "more.csv", "--format", "records")
    assert done.code == 3
    assert "treering schema support --evolve" in done.err


def test_a_restart_of_following_isnt_blamed_for_what_the_run_before_refused(support: Run, where: Path) -> None:
    path = where / "log.jsonl"
    path.write_text('{"text": "a", "label": "l"}\n{"text": 5, "label": "l"}\n')
    for rows, code in ((1, 3), (2, 0)):
        command = [sys.executable, "-m", "treering.cli", "capture", "support", str(path), "--follow"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda rows=rows: len(treering.open(where / ".treering").live("support")) == rows)  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        with path.open("a") as file:
            file.write(f'{{"text": "b{rows}", "label": "l"}}\n')
    done = support("capture", "support", str(path))
    assert done.code == 3
    assert "1 of 4 records was refused: 1 by an earlier run" in done.err


def test_what_head_prints_can_be_captured_again(support: Run, where: Path) -> None:
    chats = [
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": {"at": [1, None]}}}],
                },
            ],
            "tools": [{"name": "look"}],
            "meta": {"shard": 3},
            "ts": "2026-01-02T03:04:05+01:00",
        }
    ]
    support("create", "talks", "--schema", "chat")
    support("create", "copies", "--schema", "chat")
    support("capture", "talks", jsonl(where / "chats.jsonl", chats))
    printed = support("head", "talks@live", "--json").data
    assert support("capture", "copies", jsonl(where / "again.jsonl", printed)).code == 0
    assert support("head", "copies@live", "--json").data == printed
    assert "assistant: [look(" in support("head", "talks@live").out


def test_mix_shows_the_shares_and_writes_the_lock(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "a.jsonl", labelled(300)))
    support("snapshot", "live", "--to", "support@v1")
    support("capture", "support", jsonl(where / "b.jsonl", labelled(200, topic="late")))
    done = support(
        *("mix", "support@v1=0.3", "support@live=0.7", "--batch-size", "10", "--seed", "5"),
        *("--preview", "4", "--lock", "mix.lock.json", "--json"),
    )
    view = done.data
    assert [(s["ref"], s["share"]) for s in view["sources"]] == [("support@v1", 0.3), ("support@live", 0.7)]
    assert view["preview"] == [[3, 7]] * 4
    lock = treering.MixLock.load(where / "mix.lock.json")
    assert (lock.digest, lock.seed, lock.batch_size) == (view["digest"], 5, 10)
    assert done.lines == ["wrote the lock to mix.lock.json"]


def test_mix_says_when_a_batch_holds_more_than_there_is_and_previews_no_further_than_the_epoch(
    support: Run, where: Path
) -> None:
    support("capture", "support", jsonl(where / "a.jsonl", labelled(300)))
    support("snapshot", "live", "--to", "support@v1")
    support("capture", "support", jsonl(where / "b.jsonl", labelled(40, topic="late")))
    asked = ("mix", "support@v1=0.3", "support@live=0.7", "--preview", "3")
    wide = support(*asked, "--json").data
    rows = wide["sources"][1]["train_rows"]
    assert [one["most_in_a_batch"] for one in wide["sources"]] == [None, 180]
    assert (wide["batches_per_epoch"], len(wide["preview"])) == (1, 1)
    shown = " ".join(support(*asked).out.split())
    assert f"a batch draws up to 180 rows of support@live, which has {rows}" in shown
    assert "one epoch is 1 batch of 256" in shown
    small = support(*asked, "--batch-size", "10")
    assert "several times" not in small.out
    assert len(support(*asked, "--batch-size", "10", "--json").data["preview"]) == 3


def test_a_corpus_can_have_a_schema_of_its_own(support: Run, where: Path) -> None:
    (where / "ticket_records.py").write_text(
        "from pydantic import BaseModel\nclass Ticket(BaseModel):\n    title: str\n    minutes: int\n"
    )
    assert support("create", "tickets", "--schema", "ticket_records:Ticket", "--heldout", "0.2").code == 0
    schema = support("schema", "tickets", "--json").data
    assert {c["name"]: c["type"] for c in schema["columns"] if c["payload"]} == {"title": "string", "minutes": "int64"}
    assert {"title", "minutes"} <= set(schema["json_schema"]["properties"])
    assert support("capture", "tickets", jsonl(where / "t.jsonl", [{"title": "x", "minutes": 3}])).code == 0


OWN = """
from pydantic import BaseModel
class Body(BaseModel):
    body: str
    label: str
    lang: str = "en"
    raw: bytes | None = None
    a_column_with_quite_a_long_name_indeed: list[float] = []
"""


def test_a_schema_evolves_and_says_by_what_rule_earlier_records_are_read(support: Run, where: Path) -> None:
    (where / "own_records.py").write_text(OWN)
    support("capture", "support", jsonl(where / "r.jsonl", labelled(4)))
    support("snapshot", "live", "--to", "support")
    support("capture", "support", jsonl(where / "r.jsonl", labelled(4, topic="second")))
    words = ["schema", "support", "--evolve", "own_records:Body", "--rename", "text=body", "--default", 'raw="AP8="']
    dry = support(*words, "--dry-run", "--json").data
    assert (dry["before"], dry["version"], dry["dry_run"]) == (1, 2, True)
    assert len(support("schema", "support", "--json").data["versions"]) == 1
    done = support(*words)
    assert done.code == 0
    assert "support is now at schema version 2" in done.out
    schema = support("schema", "support", "--json").data
    assert (schema["version"], schema["record_type"]) == (2, "Body")
    assert schema["versions"][1]["changes"]["body"] == "renamed from text"
    assert schema["versions"][1]["changes"]["lang"] == 'added, filled with "en"'
    assert [c["name"] for c in support("schema", "support", "--version", "1", "--json").data["columns"]][8:] == ["text", "label"]  # fmt: skip
    assert support("schema", "support", "--arrow", "s.arrow").code == 0
    assert pa.ipc.read_schema(pa.py_buffer((where / "s.arrow").read_bytes())).names[8] == "body"
    [alignment] = support("show", "support@v1", "--align", "--json").data["alignments"]
    assert (alignment["captured_under"], alignment["read_as"], alignment["parts"]) == (1, 2, ["support@v1"])
    assert {c["column"]: c["rule"] for c in alignment["columns"]}["body"] == "renamed"
    [record] = support("head", "support@v1", "-n", "1", "--json").data
    assert (record["body"], record["lang"], record["raw"]) == ("refund number 0", "en", "AP8=")
    for words in (["schema", "support"], ["show", "support@new", "--align"], ["show", "support@live"]):
        shown = support(*words)
        assert shown.code == 0
        assert max(map(len, shown.out.splitlines())) <= 80
    assert support("schema", "support", "--evolve", "own_records:Body").out.startswith("nothing changes")


@pytest.mark.parametrize(
    "words",
    [
        *(["schema", "support"], ["status"], ["status", "support"], ["log", "support"]),
        *(["show", "support@v1", "--align"], ["schema", "support", "--evolve", "labelled"]),
        *(["show", "support@v1"], ["show", "support@v1..v2"], ["head", "support@v1"], ["adapters", "support"]),
        *(["diff", "support@v1", "support@v2", "--records"], ["diff", "support@v2"], ["audit", "support@v1..v2"]),
        *(["mix", "support@v1=1", "support@v2=2", "--preview", "2"], ["snapshot", "live", "--to", "support"]),
    ],
    ids=" ".join,
)
def test_tables_fit_into_80_columns_and_json_is_json(support: Run, where: Path, words: list[str]) -> None:
    for topic in ("first", "second"):
        support("capture", "support", jsonl(where / "r.jsonl", labelled(40, topic=topic)))
        support("snapshot", "live", "--to", "support", "-m", f"the {topic}")
    table = support(*words)
    assert table.code == 0
    assert max(map(len, table.out.splitlines()), default=0) <= 80
    as_json = support(*words, "--json")
    assert as_json.code == 0
    json.loads(as_json.out)


def test_a_record_cannot_steer_the_terminal_or_pass_for_markup(support: Run, where: Path) -> None:
    text = "\x1b[31m[bold]red[/bold]\x07 [link=x]"
    support("capture", "support", jsonl(where / "r.jsonl", [{"text": text, "label": "\x9b2J"}]))
    shown = support("head", "support@live").out
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "[31m[bold]red[/bold]" in shown
    assert support("head", "support@live", "--json").data[0]["text"] == text


def test_demo_prints_what_the_api_returns_and_never_writes_into_an_older_store(
    run: Run, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import treering.demo as module

    (where / "treering-demo").mkdir()
    monkeypatch.setenv("TREERING_STORE", "the-store-at-work")

    def told(store: str, *, report: str, clinc: str | None, seed: int, progress: Callable[[str], None]) -> Any:
        progress("round 1 of 1")
        arm = module.DemoArm(matrix=[[0.9, None], [0.5, 0.8]], average=0.65, bwt=-0.4, adapter="x:1")
        return module.DemoResult(
            store=store, live_only=arm, mix=arm, snapshots=["x@v1", "x@v2"], promoted=None, report=report, text="…"
        )

    monkeypatch.setattr(module, "run_demo", told)
    done = run("demo", "--json")
    assert done.err == "round 1 of 1\n"
    assert list(done.data) == ["store", "live_only", "mix", "snapshots", "promoted", "report"]
    assert list(done.data["mix"]) == ["matrix", "average", "bwt", "adapter"]
    assert (done.data["store"], done.data["report"]) == ("treering-demo-2", "treering-demo-2.html")
    assert run("demo", "--store", "mine", "--json").data["report"] == "mine.html"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_left_out_when_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = {}
    for no_color in ("", "1"):
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        screen = _Terminal()
        monkeypatch.setattr("sys.stdout", screen)
        from rich.text import Text

        output.render(None, False, lambda: Text("passed", "green"))
        found[no_color] = "\x1b[32m" in screen.getvalue()
    assert found == {"": True, "1": False}


def test_columns_are_cached_listed_and_dropped(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "records.jsonl", labelled(60)))
    support("snapshot", "live", "--to", "support@v1")
    built = support("cache", "build", "support@v1", "-c", "text", "-c", "label", "--json").data
    assert [(entry["ref"], entry["column"]) for entry in built["entries"]] == [
        ("support@v1", "text"),
        ("support@v1", "label"),
    ]
    shown = support("--store", str(where / ".treering"), "cache", "show", "--json").data
    assert {entry["column"] for entry in shown["entries"]} == {"text", "label"}
    assert shown["bytes"] == sum(entry["bytes"] for entry in shown["entries"]) <= shown["limit"]
    assert "support@v1" in support("cache", "show").out
    assert support("cache", "drop", "support@v1", "--json").data["entries"] == shown["entries"]
    assert support("cache", "show", "--json").data["entries"] == []
    assert "0 columns dropped" in support("cache", "drop").out
    assert support("cache").code == 2
