"""Bad input ends in one clear line and the right exit code, and leaves nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import treering
from treering.errors import ConflictError, StoreError

from .conftest import Outcome, Run, jsonl, labelled


def files(where: Path) -> dict[str, bytes]:
    """Every file below a directory; leases and caches are nothing that was written."""
    return {
        str(path.relative_to(where)): path.read_bytes()
        for path in sorted(where.rglob("*"))
        if path.is_file() and not {"leases", "cache"} & set(path.relative_to(where).parts)
    }


def one_clear_line(done: Outcome) -> str:
    """The error; there is one line of it, a hint at most beside it, no traceback, and no data."""
    assert done.lines[0].startswith("error: ")
    assert [line.partition(":")[0] for line in done.lines[1:]] in ([], ["hint"])
    assert done.out == ""
    return done.lines[0].removeprefix("error: ")


@pytest.fixture
def sealed(support: Run, where: Path) -> Run:
    """`support@v1` with 40 records, and an empty live."""
    support("capture", "support", jsonl(where / "records.jsonl", labelled(40)))
    support("snapshot", "live", "--to", "support@v1")
    return support


BAD = [
    (["serve", "--host", "0.0.0.0", "--port", "0"], 2, "without keys anybody who reaches 0.0.0.0"),
    (["serve", "--host", "nowhere.invalid", "--port", "0"], 2, "without keys"),
    (["serve", "--host", "127.0.0.1", "--port", "70000"], 2, "--port"),
    (["serve", "--queue-mb", "0"], 2, "--queue-mb"),
    (["keys", "create", "--corpus", "nobody"], 4, "no corpus 'nobody'"),
    (["keys", "create", "--corpus", "support", "--verbs", "fly"], 2, "no verb 'fly'"),
    (["keys", "create", "--corpus", "support", "--verbs", ","], 2, "without verbs"),
    (["keys", "create", "--corpus", "support", "--expires", "soon"], 2, "neither a time nor an age"),
    (["keys", "create", "--corpus", "support", "--expires", "2020-01-01"], 2, "is past"),
    (["keys", "create"], 2, "--corpus"),
    (["quarantine", "list", "nobody"], 4, "no corpus 'nobody'"),
    (["quarantine", "retry", "nobody"], 4, "no corpus 'nobody'"),
    (["quarantine", "list", "support", "-n", "0"], 2, "-n"),
    (["keys", "revoke", "0123456789ab"], 4, "no key '0123456789ab'"),
    (["status", "support", "--policy", "none.toml"], 4, "no round policy at none.toml"),
    (["status", "support", "--policy", "records.jsonl"], 2, "isn't TOML"),
    (["status", "--min-new", "5"], 2, "a policy is about one corpus"),
    (["status", "support", "--max-age-days", "nan"], 2, "max_age_days"),
    (["diff", "nobody"], 4, "no corpus 'nobody'"),
    (["diff", "support@v1"], 4, "no snapshot before support@v1"),
    (["diff", "support@v1", "support@v9"], 4, "no snapshot support@v9"),
    (["diff", "support@new"], 2, "alone can't be compared"),
    (["diff", "support@v1", "support@v1", "--text", "id2"], 2, "no text in a column 'id2'"),
    (["diff", "support@v1", "tuesday"], 2, "isn't a ref"),
    (["audit", "support@v9"], 4, "no snapshot support@v9"),
    (["audit", "support@v1", "--by", "mood"], 4, "no column 'mood'"),
    (["audit", "support@v1", "--by", "ts"], 2, "told by plain values"),
    (["audit", "support@v1", "--similarity", "2"], 2, "--similarity"),
    (["audit", "support@v1", "--exclusions", "."], 6, "can't write ."),
    (["annotate", "support", "--from", "records.jsonl"], 3, "line 1: text: expected one of label"),
    (["annotate", "support", "--from", "records.jsonl", "--format", "csv"], 3, "line 1"),
    (["annotate", "support", "--from", "records.jsonl", "--format", "parquet"], 6, "as Parquet"),
    (["annotate", "support", "--from", "records.jsonl", "--format", "xml"], 2, "no format 'xml'"),
    (["annotate", "support", "r", "--exclude", "--format", "csv"], 2, "--format is that of a file"),
    (["status", "nobody"], 4, "no corpus 'nobody'"),
    (["capture", "nobody", "records.jsonl"], 4, "no corpus 'nobody'"),
    (["snapshot", "live", "--to", "nobody@v1"], 4, "no corpus 'nobody'"),
    (["log", "nobody"], 4, "no corpus 'nobody'"),
    (["adapters", "nobody"], 4, "no corpus 'nobody'"),
    (["promote", "nobody:1"], 4, "no corpus 'nobody'"),
    (["show", "support@v9"], 4, "no snapshot support@v9"),
    (["head", "support@v1..v4"], 4, "no snapshot support@v2"),
    (["mix", "support@v9=1"], 4, "no snapshot support@v9"),
    (["head", "support@v1", "-c", "txt"], 4, "no column 'txt'"),
    (["show", "support@tuesday"], 2, "isn't a ref"),
    (["show", "support"], 2, "isn't a ref"),
    (["show", "support:1"], 4, "no adapter support:1"),
    (["show", "support:best"], 2, "doesn't name an adapter"),
    (["lineage", "nobody"], 4, "no corpus of"),
    (["lineage", "support@v9"], 4, "no snapshot support@v9"),
    (["lineage", "support:7"], 4, "no adapter support:7"),
    (["export", "support@v9"], 4, "no snapshot support@v9"),
    (["export", "none.lock.json"], 4, "no mix lock at none.lock.json"),
    (["export", "records.jsonl"], 2, "isn't a mix lock"),
    (["export", "support@v1", "--format", "xml"], 2, "no format 'xml'"),
    (["export", "support@v1", "--format", "hf"], 2, "can't hold a folder"),
    (["export", "support@v1", "--shard-rows", "0"], 2, "whole number"),
    (["export", "support@v1", "--epochs", "2"], 2, "about a lock"),
    (["export", "support@v1", "-o", "records.jsonl"], 5, "is there already"),
    (["export", "support@v1", "-o", "."], 2, "isn't the name of a file"),
    (["export", "support@v1", "-o", "o.jsonl.bz2"], 2, "can't compress to .bz2"),
    (["export", "support@v1", "-c", "mood"], 4, "no column 'mood'"),
    (["pack", "support@live"], 2, "isn't a snapshot"),
    (["pack", "support@v9"], 4, "no snapshot support@v9"),
    (["pack", "support@v1", "-o", "no/where.zip"], 6, "can't write"),
    (["unpack", "nothing.zip"], 4, "no file nothing.zip"),
    (["unpack", "records.jsonl"], 3, "isn't a zip archive"),
    (["capture", "support", "records.jsonl", "--as-of", "ts"], 2, "go together"),
    (["capture", "support", "records.jsonl", "--as-of", "when", "--snapshot-by", "month"], 4, "no column 'when'"),
    (["capture", "support", "records.jsonl", "--as-of", "ts", "--snapshot-by", "year"], 2, "by day, week or month"),
    (["annotate", "support", "refund-1", "--correction", "Sorry!"], 3, "columns and their values"),
    (["annotate", "support", "refund-1", "--correction", '{"id": "x"}'], 3, "correction.id"),
    (["prune", "nobody", "--keep", "1"], 4, "no corpus 'nobody'"),
    (["prune", "support"], 2, "by one rule"),
    (["prune", "support", "--keep", "1", "--older-than", "9d"], 2, "by one rule"),
    (["prune", "support", "--keep", "-1"], 2, "keep is -1"),
    (["prune", "support", "--older-than", "soon"], 2, "'soon' isn't an age"),
    (["prune", "support", "--uninformative"], 3, "3 rounds"),
    (["create", "../x", "--schema", "labelled"], 2, "'../x' can't name a corpus"),
    (["create", "Support", "--schema", "labelled"], 2, "'Support' can't name a corpus"),
    (["create", "adapters", "--schema", "labelled"], 2, "reserved"),
    (["status", "../x"], 2, "'../x' can't name a corpus"),
    (["capture", "../../etc", "records.jsonl"], 2, "can't name a corpus"),
    (["capture", "support", "records.jsonl", "--format", "xml"], 2, "no format 'xml'"),
    (["capture", "support", "records.jsonl", "--format", "openai"], 2, "can't fill records of the type labelled"),
    (["capture", "support", "no-such-*.jsonl"], 4, "no file matches no-such-*.jsonl"),
    (["capture", "support", "no-such.parquet", "--format", "parquet"], 4, "no file no-such.parquet"),
    (["capture", "support", "memory://x.jsonl", "--follow"], 2, "only local files grow"),
    (["capture", "support", "no-such-file.jsonl", "--follow"], 4, "no file no-such-file.jsonl"),
    (["capture", "support", "r.jsonl", "--as-of", "ts", "--snapshot-by", "day", "--follow"], 2, "don't go together"),
    (["snapshot", "live", "--to", "../x@v2"], 2, "can't name a corpus"),
    (["gate", "../x:1"], 2, "can't name a corpus"),
    (["create", "support", "--schema", "labelled"], 5, "there is a corpus 'support' already"),
    (["create", "other", "--schema", "sonnet"], 2, "no record type 'sonnet'"),
    (["create", "other", "--schema", "no_such_module:Thing"], 2, "can't load the schema"),
    (["create", "other", "--schema", "json:dumps"], 2, "a schema is"),
    (["create", "other", "--schema", "labelled", "--heldout", "1.5"], 2, "heldout is a share"),
    (["create", "other", "--schema", "labelled", "--group-by", "mood"], 2, "group_by is"),
    (["schema", "nobody", "--evolve", "labelled"], 4, "no corpus 'nobody'"),
    (["schema", "support", "--evolve", "tokens"], 2, "can't evolve: tokens: required"),
    (["schema", "support", "--evolve", "sonnet"], 2, "no record type 'sonnet'"),
    (["schema", "support", "--evolve", "labelled", "--rename", "text"], 2, "expected OLD=NEW"),
    (["schema", "support", "--evolve", "labelled", "--rename", "nope=text"], 2, "there is no column nope"),
    (["schema", "support", "--evolve", "labelled", "--default", "text=hello"], 2, "--default text=hello"),
    (["schema", "support", "--evolve", "labelled", "--version", "1"], 2, "--evolve makes one"),
    (["schema", "support", "--rename", "text=body"], 2, "belong to --evolve"),
    (["schema", "support", "--version", "9"], 4, "no schema version 9"),
    (["schema", "support", "--arrow", "."], 6, "can't write ."),
    (["show", "support:1", "--align"], 2, "an adapter has none"),
    (["capture", "support", "no-such-file.jsonl"], 4, "no file no-such-file.jsonl"),
    (["capture", "support", "."], 4, ". is a directory"),
    (["snapshot", "live", "--to", "support@v1"], 5, "support@v1 is already sealed"),
    (["snapshot", "live", "--to", "support@v7"], 5, "support@v2 comes first"),
    (["snapshot", "live", "--to", "support@live"], 2, "can't be sealed to"),
    (["snapshot", "dead", "--to", "support"], 2, "only live can be sealed"),
    (["erase", "nobody", "--id", "x"], 4, "no corpus 'nobody'"),
    (["erase", "support"], 2, "nothing was named to erase"),
    (["erase", "support", "--yes"], 2, "nothing was named to erase"),
    (["erase", "support", "--list", "--id", "x"], 2, "--list lists"),
    (["erase", "support", "--subject", "", "--yes"], 2, "none of them empty"),
    (["erase", "support", "--id", "x", "--yes", "--reason", "of x"], 2, "the reason names"),
    (["erase", "support", "--ids-from", "none.txt", "--yes"], 4, "no file none.txt"),
    (["erase", "support", "--ids-from", ".", "--yes"], 4, "no file ."),
    (["mix"], 2, "a mix needs sources"),
    (["cache", "build", "support@live"], 2, "live is never cached"),
    (["cache", "build", "support@v9"], 4, "no snapshot support@v9"),
    (["cache", "build", "support@v1", "-c", "txt"], 4, "no column 'txt'"),
    (["cache", "drop", "support@v9"], 4, "no snapshot support@v9"),
    (["cache", "empty"], 2, "empty"),
    (["mix", "support@live=1"], 2, "support@live has no training rows"),
    (["mix", "support@v1=much"], 2, "'much' isn't a weight"),
    (["mix", "support@v1=-1"], 2, "weight"),
    (["mix", "support@v1=nan"], 2, "weight"),
    (["mix", "support@v1=0"], 2, "all weights are 0"),
    (["mix", "support@v1=1", "--batch-size", "0"], 2, "--batch-size"),
    (["train"], 2, "train needs a mix"),
    (["train", "support@v1=1", "--steps", "0"], 2, "steps"),
    (["train", "support@v1=1", "--strategy", "prayer"], 2, "prayer"),
    (["train", "--lock", "none.lock.json"], 4, "no mix lock at none.lock.json"),
    (["train", "--lock", "records.jsonl"], 2, "isn't a mix lock"),
    (["train", "support@v1=1", "--config", "none.toml"], 4, "no training config at none.toml"),
    (["train", "support@v1=1", "--config", "records.jsonl"], 2, "can't read records.jsonl"),
    (["eval", "support:candidate"], 4, "support has no candidate"),
    (["eval", "support:1", "--matrix", "--on", "support@v1"], 2, "--matrix has its own slices"),
    (["eval", "support:1", "--diagnose", "--on", "support@v1"], 2, "--diagnose looks at what it needs"),
    (["eval", "support:1", "--diagnose"], 4, "no adapter support:1"),
    (["eval", "support:1", "--full"], 2, "about a score matrix"),
    (["eval", "support:1", "--tolerance", "0.1"], 2, "about refs"),
    (["eval", "support:1", "--on", "support@v1,support@tuesday"], 2, "isn't a ref"),
    (["eval", "support:1", "--extra", "hard"], 2, "expected NAME=FILE"),
    (["eval", "support:1", "--extra", "a=x", "--extra", "a=y"], 2, "two test sets are called a"),
    (["eval", "support:1", "--metric", "f2"], 2, "unknown metric 'f2'"),
    (["adapters", "export", "support:1", "out"], 4, "no adapter support:1"),
    (["adapters", "export", "nobody:1", "out"], 4, "no corpus 'nobody'"),
    (["adapters", "export", "support@v1", "out"], 2, "doesn't name an adapter"),
    (["adapters", "export", "support:1"], 2, "DIR"),
    (["adapters", "add", "support"], 2, "--external"),
    (["adapters", "add", "nobody", "--external", "x"], 4, "no corpus 'nobody'"),
    (["adapters", "add", "support", "--external", " "], 2, "needs a name"),
    (["adapters", "add", "support", "--external", "x", "--parent", "support:9"], 4, "no adapter support:9"),
    (["adapters", "add", "support", "--external", "x", "--lock", "none.lock.json"], 4, "no mix lock"),
    (["label", "nobody"], 4, "no corpus 'nobody'"),
    (["label", "support", "--on", "other@v1"], 2, "isn't of support"),
    (["label", "support", "--on", "support@v9"], 4, "no snapshot support@v9"),
    (["label", "support", "-n", "0"], 2, "-n"),
    (["annotate", "support", "refund-1", "--intents", "0"], 3, "a whole number from 1"),
    (["train", "support@v1=1", "--only-head", "--only-gate", "x"], 2, "exclude each other"),
    (["train", "support@v1=1", "--only-head", "--parent", "none"], 2, "there is no parent"),
    (["train", "support@v1=1", "--parent", "support:9"], 4, "no adapter support:9"),
    (["gate", "support:candidate"], 4, "support has no candidate"),
    (["gate", "support:1", "--policy", "none.toml"], 4, "none.toml"),
    (["promote", "support:candidate"], 4, "support has no candidate"),
    (["rollback", "support"], 4, "no earlier production adapter"),
    (["train", "support@v1=1", "--track", "paper:notes"], 2, "unknown tracker"),
    (["round"], 4, "no round config at round.toml"),
    (["round", "none.toml"], 4, "no round config at none.toml"),
    (["round", "records.jsonl"], 2, "isn't TOML"),
    (["round", "--abandon", "--now"], 2, "--abandon goes alone"),
    (["report", "nobody"], 4, "no corpus 'nobody'"),
    (["report", "--adapter", "support:7"], 4, "no adapter support:7"),
    (["report", "--adapter", "other:1"], 2, "isn't an adapter of support"),
    (["report", "--quick", "-o", "."], 6, "can't write the report to"),
    (["demo", "--clinc", "none.json"], 4, "nothing at none.json"),
    (["demo", "--clinc", "records.jsonl"], 2, "records.jsonl isn't JSON"),
    (["verify", "nobody"], 4, "no corpus 'nobody'"),
    (["verify", "nobody@v1"], 4, "no corpus 'nobody'"),
    (["verify", "support@v9"], 4, "no snapshot support@v9"),
    (["verify", "--engine", "spark"], 2, "--engine"),
    (["verify", "nobody", "--engine", "local"], 4, "no corpus 'nobody'"),
    (["compact", "nobody"], 4, "no corpus 'nobody'"),
    (["compact"], 2, "CORPUS"),
    (["compact", "support", "--engine", "spark"], 2, "--engine"),
    (["export", "support@v9", "--engine", "local"], 4, "no snapshot support@v9"),
    (["capture", "support", "records.jsonl", "--engine", "local", "--follow"], 2, "don't go together"),
    (["eval", "support:1", "--diagnose", "--engine", "local"], 2, "--diagnose looks at what it needs"),
    (["cache", "features", "support@v9"], 4, "no snapshot support@v9"),
    (["cache", "features", "support@v1", "--base", "nowhere/none"], 4, "nowhere/none"),
    (["cache", "features", "support@v1", "--config", "none.toml"], 4, "no training config at none.toml"),
    (["cache", "build", "support@live", "--engine", "local"], 2, "live is never cached"),
    (["verify", "support@new"], 2, "can't be verified by itself"),
    (["verify", "support@tuesday"], 2, "isn't a ref"),
    (["verify", "../x"], 2, "'../x' can't name a corpus"),
    (["doctor", "--repair", "support"], 2, "support"),
    (["gaet"], 2, "gaet"),
    (["head"], 2, "Missing argument"),
    (["head", "support@v1", "-n", "many"], 2, "-n"),
    (["head", "support@v1", "--upside-down"], 2, "--upside-down"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_arguments_end_in_one_line_and_change_nothing(
    sealed: Run, where: Path, words: list[str], code: int, said: str
) -> None:
    before = files(where)
    done = sealed(*words)
    assert done.code == code
    assert said in one_clear_line(done)
    assert files(where) == before


def test_with_json_the_error_is_an_object_on_stderr_and_stdout_stays_empty(support: Run) -> None:
    done = support("show", "support@v9", "--json")
    assert (done.code, done.out) == (4, "")
    error = json.loads(done.err)["error"]
    assert error == {
        "code": "no-snapshot",
        "message": "there is no snapshot support@v9",
        "hint": "snapshots here: none yet",
    }


def test_a_malformed_line_is_named_and_the_others_are_stored(support: Run, where: Path) -> None:
    lines: list[object] = [*labelled(5_000)]
    lines[4_710] = '{"text": "oops", '
    done = support("capture", "support", jsonl(where / "records.jsonl", lines))
    assert done.code == 3
    assert done.lines[0].startswith("error: 1 of 5,000 records was refused: line 4,711: ")
    assert len(done.lines) == 2
    corpus = treering.open(where / ".treering").corpus("support")
    assert corpus.live_rows() == 4_999
    (refused,) = corpus.quarantine()
    assert refused.source == f"{where / 'records.jsonl'}:4711"
    assert refused.record == '{"text": "oops", '


def test_records_of_wrong_types_are_refused_with_every_problem_and_never_coerced(support: Run, where: Path) -> None:
    bad = [
        {"text": 12, "label": None},
        {"text": "a", "label": "b", "mood": "x"},
        ["not", "a", "record"],
        "17",
        '{"text": "a", "label": NaN}',
    ]
    done = support("capture", "support", jsonl(where / "bad.jsonl", [*bad, *labelled(2)]), "--json")
    assert done.code == 3
    assert (done.data["read"], done.data["stored"], done.data["refused"]) == (7, 2, 5)
    kinds = [[p["kind"] for p in line["problems"]] for line in done.data["refused_lines"]]
    assert kinds == [["wrong-type", "wrong-type"], ["unknown-field"], ["wrong-type"], ["wrong-type"], ["bad-json"]]
    assert json.loads(done.err)["error"]["code"] == "records-refused"
    assert support("status", "support", "--json").data["quarantined"] == 5


def test_an_id_with_other_content_is_refused_and_the_first_record_stays(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "a.jsonl", [{"id": "x", "text": "one", "label": "a"}]))
    support("snapshot", "live", "--to", "support@v1")
    done = support("capture", "support", jsonl(where / "b.jsonl", [{"id": "x", "text": "two", "label": "a"}]))
    assert done.code == 3
    assert "taken by other content: 'x'" in done.lines[0]
    assert support("head", "support@v1", "--json", "-c", "text").data == [{"text": "one"}]
    status = support("status", "support", "--json").data
    assert (status["live_rows"], status["quarantined"]) == (0, 1)


def test_bytes_that_are_not_text_are_refused_like_any_other_line(support: Run, where: Path) -> None:
    (where / "bytes.jsonl").write_bytes(b'\xff\xfe{"text"\n{"text": "a", "label": "b"}\n')
    done = support("capture", "support", str(where / "bytes.jsonl"), "--json")
    assert (done.code, done.data["stored"], done.data["refused"]) == (3, 1, 1)


@pytest.mark.parametrize("text", ["store = 3", "store = ", "store = ''"])
def test_a_settings_file_that_makes_no_sense_is_a_usage_error(run: Run, where: Path, text: str) -> None:
    (where / "treering.toml").write_text(text)
    done = run("status")
    assert done.code == 2
    assert "treering.toml" in one_clear_line(done)


def test_a_directory_that_holds_something_else_is_not_taken_for_a_store(run: Run, where: Path) -> None:
    (where / "photos").mkdir()
    (where / "photos" / "cat.jpg").write_bytes(b"cat")
    done = run("init", "--store", "photos")
    assert done.code == 2
    assert "isn't a store" in one_clear_line(done)
    assert files(where) == {"photos/cat.jpg": b"cat"}


def test_a_damaged_store_is_a_store_error(run: Run, where: Path) -> None:
    run("init")
    (where / ".treering" / "treering.json").write_text("{")
    assert run("status").code == StoreError.exit_code == 6


def test_a_lock_of_another_store_is_a_conflict(sealed: Run, where: Path) -> None:
    sealed("mix", "support@v1=1", "--lock", "mix.lock.json")
    for words in (
        ["init"],
        ["create", "support", "--schema", "labelled"],
        ["capture", "support", "records.jsonl"],
        ["snapshot", "live", "--to", "support@v1"],
    ):
        assert sealed(*words, "--store", "other").code == 0
    done = sealed("train", "--lock", "mix.lock.json", "--steps", "1", "--store", "other")
    assert done.code == ConflictError.exit_code == 5
    assert "isn't what was pinned" in one_clear_line(done)


def test_what_nobody_foresaw_is_one_line_and_exit_code_1(support: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the sky\nfell")

    monkeypatch.setattr(treering.Corpus, "live_rows", broken)
    done = support("log", "support")
    assert (done.code, done.lines[0]) == (1, "error: RuntimeError: the sky fell")
    assert "TREERING_DEBUG=1" in done.lines[1]
    monkeypatch.setenv("TREERING_DEBUG", "1")
    assert support("log", "support").err == ""  # the exception itself leaves the command
