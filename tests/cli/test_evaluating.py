"""`eval` as canary and diagnosis, models from elsewhere and `label`, by the command line alone; on a tiny base."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

import treering
from tests.rounds.tiny_rounds import broken, config, swap_the_head, two_rounds
from tests.training.tiny import make_base
from treering.registry import Registry

from .conftest import Run, jsonl


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    two_rounds(folder / ".treering", make_base(folder / "base"))
    return folder / ".treering"


@pytest.fixture
def tiny(run: Run, where: Path, trained: Path) -> Run:
    shutil.copytree(trained, where / ".treering")
    return run


def promote(run: Run, adapter: str, where: Path) -> None:
    (where / "gate.toml").write_text("regression_tolerance = 1.0\n")
    assert run("gate", adapter, "--policy", "gate.toml").code == 0
    assert run("promote", adapter).code == 0


def test_a_canary_that_drops_ends_with_3_and_names_the_slice(tiny: Run, where: Path) -> None:
    promote(tiny, "support:2", where)
    records = [{"id": f"n{k}", "text": f"bill bill {k}", "label": "billing-a", "split": "heldout"} for k in range(8)]
    assert tiny("capture", "support", jsonl(where / "new.jsonl", records)).code == 0
    refs = "support@v1..v2,support@live"
    first = tiny("eval", "support:production", "--on", refs, "--json")
    assert first.code == 0
    assert list(first.data["scores"]) == ["support@v1", "support@v2", "support@live"]
    assert list(first.data["before"]) == ["support@v1", "support@v2"]
    for k in range(8):  # somebody looks, and finds that they were all labelled wrongly
        assert tiny("annotate", "support", f"n{k}", "--correction", '{"label": "shipping-a"}').code == 0
    second = tiny("eval", "support:production", "--on", refs)
    assert second.code == 3
    assert second.lines[0].startswith("error: support:2 has dropped: support@live from 100.0 to 0.0")
    assert "DROPPED" in second.out
    assert tiny("eval", "support:production", "--on", "support@v1", "--tolerance", "0.5").code == 0


def test_a_diagnosis_prints_findings_and_remedies_that_run(tiny: Run, where: Path) -> None:
    store = treering.open(where / ".treering")
    ref = broken(store, broken(store, "support:2", swap_the_head), lambda adapter, tensors: None)
    done = tiny("eval", ref, "--diagnose", "--json")
    assert done.code == 0
    assert done.data["spurious_share"] > 0.9
    by_check = {finding["check"]: finding for finding in done.data["findings"]}
    assert by_check["severe-forgetting"]["ok"] is False
    remedy = by_check["spurious-forgetting"]["remedy"]
    assert by_check["severe-forgetting"]["remedy"] == remedy  # drift is what is behind it
    table = tiny("eval", ref, "--diagnose").out
    assert "NOT OK" in table
    assert remedy in table
    cured = tiny(*shlex.split(remedy)[1:], "--json")
    assert cured.code == 0
    assert cured.data["parent"] == ref
    assert cured.data["config"]["only"] == "head"
    assert cured.data["config"]["base"].endswith("base")  # as its parent, though nobody said so
    learned = Registry(store, "support").get("support:1").scores["support@v1"]
    assert cured.data["scores"]["support@v1"] > learned - 0.1


def test_only_a_domains_gates_can_be_trained(tiny: Run) -> None:
    done = tiny(
        "train", "support@v1..v2=1", "--parent", "support:2", "--only-gate", "billing", "--steps", "3", "--json"
    )
    assert done.code == 0
    assert done.data["config"]["only"] == "gate:billing"
    refused = tiny("train", "support@v1=1", "--parent", "support:2", "--only-gate", "weather", "--steps", "3")
    assert (refused.code, refused.lines[0]) == (2, "error: the adapter has no gate for domain 'weather'")


def test_the_matrix_takes_test_sets_a_loss_and_a_fresh_baseline(tiny: Run, where: Path) -> None:
    file = jsonl(
        where / "hard.jsonl", [{"text": "bill 1", "label": "billing-a"}, {"text": "parcel", "label": "shipping-a"}]
    )
    done = tiny("eval", "support:2", "--matrix", "--full", "--fresh-baseline", "--extra", f"hard={file}", "--json")
    assert done.code == 0
    assert done.data["slices"] == ["support@v1", "support@v2", "hard"]
    assert done.data["learned_in"] == [0, 1, 1]
    assert done.data["reference_name"] == "support:3"
    assert None not in (done.data["forward_transfer"], done.data["intransigence"])
    loss = tiny("eval", "support:2", "--matrix", "--metric", "loss")
    assert loss.code == 0
    assert "the lower the better" in loss.out
    assert tiny("show", "support:3", "--json").data["status"] == "baseline"
    table = tiny("eval", "support:2", "--matrix", "--fresh-baseline").out
    assert "support:3 (fresh)" in table
    assert "BWT: mean of R[T,j] − R[l,j];" in table.splitlines()
    assert max(map(len, table.splitlines())) <= 80


def test_a_model_from_elsewhere_is_added_scored_and_listed(tiny: Run, where: Path) -> None:
    assert tiny("mix", "support@v1=1", "support@v2=1", "--lock", "mix.lock.json").code == 0
    added = tiny(
        "adapters",
        "add",
        "support",
        "--external",
        "hub:x",
        "--parent",
        "support:1",
        "--lock",
        "mix.lock.json",
        "--json",
    )
    assert added.code == 0
    assert (added.data["ref"], added.data["external"]) == ("support:3", "hub:x")
    assert added.data["trained_on"] == ["support@v1", "support@v2"]
    assert tiny("eval", "support:3").code == 4
    store = treering.open(where / ".treering")
    held = store.load("support@v1..v2").heldout().to_table(["id", "label"]).to_pylist()
    file = jsonl(where / "p.jsonl", [{"id": row["id"], "predicted": row["label"]} for row in held])
    scored = tiny("eval", "support:3", "--predictions", file, "--json")
    assert scored.data["scores"] == {"support@v1": 1.0, "support@v2": 1.0}
    assert tiny("gate", "support:3").code == 0
    assert tiny("eval", "support:3", "--diagnose").code == 0
    refused = tiny("eval", "support:3", "--predictions", jsonl(where / "q.jsonl", [{"id": "x", "predicted": "a"}]))
    assert refused.code == 3
    assert "12 of the 12 records of support@v1 are missing" in refused.lines[0]
    assert "1 ids are no held-out records of support@v1, support@v2: 'x'" in refused.lines[0]
    listed = tiny("adapters", "support", "--json").data
    assert [one["ref"] for one in listed] == ["support:1", "support:2", "support:3"]
    assert tiny("adapters", "list", "support", "--json").data == listed
    assert tiny("--store", ".treering", "adapters", "support", "--json").data == listed


def test_labelling_is_stored_line_by_line_and_goes_on_where_it_stopped(tiny: Run, where: Path) -> None:
    done = tiny(
        "label", "support", "-n", "5", "--on", "support@v1", "--by", "ann", "--json", stdin="1\nmany\n2\ns\nq\n"
    )
    assert done.code == 0
    assert done.data == {
        "corpus": "support", "ref": "support@v1", "sample": 5, "said": 2, "several": 1, "skipped": 1, "left": 3,
    }  # fmt: skip
    assert "isn't a number from 1 to 99" in done.err
    words = treering.open(where / ".treering").corpus("support").annotations(key="intents").to_pylist()
    assert sorted((json.loads(word["value"]), word["by"]) for word in words) == [(1, "ann"), (2, "ann")]
    rest = tiny("label", "support", "-n", "5", "--on", "support@v1", "--json", stdin="1\n1\n1\n")
    assert (rest.data["said"], rest.data["left"]) == (3, 0)
    assert tiny("label", "support", "-n", "5", "--on", "support@v1", stdin="").code == 0


def test_a_run_that_a_canary_ended_says_so(tiny: Run, where: Path) -> None:
    (where / "train.toml").write_text(
        "".join(
            f"{name} = {json.dumps(value)}\n"
            for name, value in config(str(where)).model_dump().items()
            if value is not None and name not in ("base", "strategy")
        )
    )
    base = Registry(treering.open(where / ".treering"), "support").get("support:2").config["base"]
    records = [{"text": f"login {k}", "label": "account-a", "split": "train"} for k in range(30)]
    assert tiny("capture", "support", jsonl(where / "new.jsonl", records)).code == 0
    assert tiny("snapshot", "live", "--to", "support").code == 0
    done = tiny(
        "train", "support@v3=1", "--config", "train.toml", "--base", base, "--strategy", "naive", "--parent", "support:2",
        "--eval-every", "2", "--steps", "200",
    )  # fmt: skip
    assert done.code == 0
    assert "stopped early: after" in done.err
