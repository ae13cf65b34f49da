"""`treering annotate` and `treering select`, from a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treering

from .conftest import Run, jsonl


def records() -> list[dict[str, Any]]:
    domains = ["billing"] * 30 + ["returns"] * 8 + ["login"] * 2
    return [
        {"id": f"r-{n}", "text": f"text {n}", "label": "l", "domain": domain, "split": "train"}
        for n, domain in enumerate(domains)
    ]


@pytest.fixture
def sealed(support: Run, where: Path) -> Run:
    support("capture", "support", jsonl(where / "records.jsonl", records()))
    support("snapshot", "live", "--to", "support@v1")
    return support


def test_a_word_about_one_record_and_words_about_many(sealed: Run, where: Path) -> None:
    done = sealed("annotate", "support", "r-1", "--exclude", "--label", "refund", "--by", "ann", "--json")
    assert (done.code, done.data) == (0, {"corpus": "support", "stored": 2})
    lines = [{"id": f"r-{n}", "exclude": True, "by": "bob"} for n in range(5)] + [
        {"id": "r-9", "correction": {"text": "x"}}
    ]
    assert "6 annotations stored" in sealed("annotate", "support", "--from", jsonl(where / "w.jsonl", lines)).out
    done = sealed("annotate", "support", "--from", "-", stdin='{"id": "r-0", "exclude": false}\n\n')
    assert done.code == 0
    assert sealed("annotate", "support", "r-9", "--correction", '{"text": "y"}').code == 0
    corpus = treering.open(where / ".treering").corpus("support")
    assert {row["id"] for row in corpus.annotations(key="exclude").to_pylist() if row["value"] == "true"} == {
        "r-1", "r-2", "r-3", "r-4",
    }  # fmt: skip
    assert corpus.annotations(key="correction").column("value").to_pylist() == ['{"text":"y"}']
    mixed = sealed("mix", "support@v1", "--json")
    assert mixed.data["sources"][0]["train_rows"] == 36


def test_a_selection_is_made_shown_and_mixed_by_its_ref(sealed: Run) -> None:
    done = sealed("select", "support@v1", "--rows", "9", "--strategy", "balanced", "--name", "nine")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    for word in ("support/nine", "9 of 9 rows", "starving", "billing", "returns", "login"):
        assert word in done.out
    again = sealed("select", "support@v1", "--rows", "9", "--strategy", "balanced", "--name", "nine", "--json")
    record = again.data["record"]
    assert {d["domain"]: d["rows"] for d in record["report"]["domains"]} == {
        "billing": 4,
        "returns": 3,
        "login": 2,
    } or (record["rows"] == 9)
    mixed = sealed("mix", "support/nine=0.3", "support@v1=0.7", "--json", "--lock", "mix.lock.json")
    assert [s["train_rows"] for s in mixed.data["sources"]] == [9, 40]
    pin = json.loads(Path("mix.lock.json").read_text("utf-8"))["sources"][0]["pin"]
    assert pin["selection"] == {"name": "nine", "digest": record["digest"]}
    shown = sealed("show", "support/nine", "--json")
    assert (shown.data["rows"], shown.data["counts"]) == (9, None)
    assert len(sealed("head", "support/nine", "-n", "20", "--json").data) == 9


def test_importance_reads_losses_or_a_score_matrix(sealed: Run, where: Path) -> None:
    (where / "loss.json").write_text(json.dumps({"returns": 0.3}), "utf-8")
    words = ["select", "support@v1", "--rows", "10", "--strategy", "importance", "--json"]
    done = sealed(*words, "--forgetting", "loss.json", "--floor", "0.1")
    assert done.data["record"]["weights"] == pytest.approx({"billing": 0.1, "login": 0.1, "returns": 0.8})
    matrix = treering.ScoreMatrix(
        ("1", "2"), ("support[domain=returns]", "support[domain=login]"), np.array([[0.9, np.nan], [0.5, 0.5]])
    )
    (where / "matrix.json").write_text(matrix.to_json(), "utf-8")
    done = sealed(*words, "--forgetting", "matrix.json", "--floor", "1")
    rows = {d["domain"]: d["rows"] for d in done.data["record"]["report"]["domains"]}
    assert rows == {"billing": 1, "returns": 8, "login": 1}


BAD = [
    (["annotate", "support", "r-1"], 2, "nothing is said"),
    (["annotate", "support", "--exclude"], 2, "say something about one record"),
    (["annotate", "support", "r-1", "--exclude", "--from", "x"], 2, "say something about one record"),
    (["annotate", "support", "--exclude", "--from", "x"], 2, "the lines say it all"),
    (["annotate", "support", "nobody", "--exclude"], 4, "no record 'nobody'"),
    (["annotate", "nobody", "r-1", "--exclude"], 4, "no corpus 'nobody'"),
    (["annotate", "support", "--from", "no-such-file"], 4, "no file no-such-file"),
    (["annotate", "support", "--from", "bad.jsonl"], 3, "line 2"),
    (["annotate", "support", "r-1", "--quality", "nan"], 3, "quality"),
    (["select", "support@v1"], 2, "one budget"),
    (["select", "support@v1", "--rows", "5", "--mb", "1"], 2, "one budget"),
    (["select", "support@v1", "--rows", "5", "--strategy", "best"], 2, "strategy is"),
    (["select", "support@v1", "--rows", "5", "--by", "mood"], 4, "no column"),
    (["select", "support@v1", "--rows", "5", "--floor", "many"], 2, "isn't a floor"),
    (["select", "support@v1", "--rows", "5", "--name", "../x"], 2, "can't name a selection"),
    (["select", "support@v1", "--rows", "6", "--name", "five"], 5, "support/five is another selection"),
    (["select", "support@live", "--rows", "5"], 2, "no training rows"),
    (["select", "support@v1", "--rows", "5", "--strategy", "importance", "--forgetting", "gone.json"], 4, "gone.json"),
    (["select", "support@v1", "--rows", "5", "--strategy", "importance", "--forgetting", "bad.jsonl"], 2, "isn't JSON"),
    (["select", "support@v1", "--rows", "5", "--strategy", "importance"], 4, "no adapter"),
    (["show", "support/nope"], 4, "no selection support/nope"),
    (["mix", "support/nope=1"], 4, "no selection support/nope"),
    (["mix", "support/../x=1"], 2, "can't name a selection"),
]


def test_bad_input_is_one_clear_line_and_stores_nothing(sealed: Run, where: Path) -> None:
    (where / "bad.jsonl").write_text('{"id": "r-1", "exclude": true}\n{"id": "r-2", "exclud": true}\n', "utf-8")
    assert sealed("select", "support@v1", "--rows", "5", "--name", "five").code == 0
    for words, code, says in BAD:
        done = sealed(*words)
        assert (done.code, done.out) == (code, ""), words
        assert says in done.err, words
        assert done.lines[0].startswith("error: ")
        assert len(done.lines) <= 2
    corpus = treering.open(where / ".treering").corpus("support")
    assert corpus.annotations().num_rows == 0
    assert [record.name for record in corpus.selections()] == ["five"]


def test_a_process_of_its_own_annotates_and_selects(sealed: Run, where: Path) -> None:
    for words in (["annotate", "support", "r-3", "--exclude"], ["select", "support@v1", "--tokens", "20", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "treering.cli", *words], cwd=where, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["record"]
    assert (record["budget"], record["used"], record["rows"]) == (20, 18, 6)  # three words each: two of text, a label
