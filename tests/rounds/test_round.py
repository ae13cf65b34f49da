"""Rounds with a tiny base: what they train on, what moves the share of replay, what they tell."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.training.tiny import make_base, records
from treering.errors import ConflictError, NotFoundError, UsageError
from treering.evaluation import CheckedRow, GatePolicy, Verdict
from treering.registry import Registry
from treering.rounds import RoundConfig, add_external, past_rounds
from treering.rounds.documents import ReplayRule
from treering.rounds.driver import next_share
from treering.rounds.summary import summary

TRAIN = {
    "steps": 40,
    "batch_size": 16,
    "lr": 1e-2,
    "bottleneck": 8,
    "feature_noise": 0.1,
    "precision": "fp32",
    "max_tokens": 32,
}


def config_of(base: str, **more: Any) -> dict[str, Any]:
    """A config that any new record makes due."""
    return {
        "corpus": "support",
        "due": {"fewest": 1, "min_new": 10},
        "train": {**TRAIN, "base": base},
        "gate": {"regression_tolerance": 0.3, "max_p99_ms": 10_000.0},
        **more,
    }


def grow(corpus: treering.Corpus, topic: str, *, tag: str = "") -> None:
    """40 records of one topic, every fifth held out."""
    with corpus.capture() as live:
        live.extend(
            {**record, "id": f"{topic}{tag}-{n}", "split": "train" if n % 5 else "heldout"}
            for n, record in enumerate(records(topic))
        )


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(base: str) -> dict[str, Any]:
    return config_of(base)


def test_rounds_seal_train_on_new_and_replay_and_promote(support: treering.Corpus, config: dict[str, Any]) -> None:
    store = support.store
    for number, topic in enumerate(("billing", "shipping", "account"), 1):
        grow(support, topic)
        result = treering.round(store, config)
        assert (result.number, result.outcome, result.production) == (number, "promoted", f"support:{number}")
        assert result.sealed == f"support@v{number}"
    assert [(s.ref, round(s.share, 3), s.replay) for s in result.sources] == [
        ("support@v1..v2", 0.3, True),
        ("support@v3", 0.7, False),
    ]
    records_ = store.adapters("support")
    assert [a.parent for a in records_] == [None, "support:1", "support:2"]
    assert [a.run for a in records_] == ["support/1", "support/2", "support/3"]
    assert [a.status for a in records_] == ["retired", "retired", "production"]
    served = records_[-1].stats["rows_per_source"]
    assert served["support@v1..v2"] / sum(served.values()) == pytest.approx(0.3, abs=0.01)
    assert [one.outcome for one in past_rounds(store, "support")] == ["promoted"] * 3


def test_nothing_new_is_nothing_to_do_and_leaves_nothing(support: treering.Corpus, config: dict[str, Any]) -> None:
    result = treering.round(support.store, config)
    assert (result.outcome, result.number, result.ok) == ("not-due", None, True)
    assert support.store.objects.list("runs") == []
    grow(support, "billing")
    few = {**config, "due": {"fewest": 10_000}}
    assert treering.round(support.store, few).outcome == "not-due"
    assert support.snapshots() == []
    assert treering.round(support.store, few, now=True).outcome == "promoted"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(support: treering.Corpus, config: dict[str, Any]) -> None:
    grow(support, "billing")
    treering.round(support.store, config)
    grow(support, "shipping")
    before = support.store.objects.list("")
    result = treering.round(support.store, config, dry_run=True)
    assert (result.outcome, result.number, result.parent) == ("planned", 2, "support:1")
    assert [(s.ref, s.replay) for s in result.sources] == [("support@v1", True), ("support@live", False)]
    assert support.store.objects.list("") == before
    assert "would run" in summary(result)


def test_a_refused_candidate_leaves_production_and_regression_raises_the_share_of_replay(
    support: treering.Corpus, config: dict[str, Any]
) -> None:
    store = support.store
    grow(support, "billing")
    treering.round(store, config)
    grow(support, "shipping")
    strict = {**config, "gate": {"slices": {"support@v2": 1.0, "support@v1": 1.0}, "max_p99_ms": False}}
    strict["replay"] = {"base": 0.0}
    result = treering.round(store, strict)
    assert (result.outcome, result.ok, result.production) == ("refused", False, "support:1")
    assert result.why == store.adapters("support")[-1].verdict.reasons  # type: ignore[union-attr]
    assert store.adapters("support")[-1].status == "refused"
    assert result.next_share == 0.5, result.next_reason
    # The same records with more replay, though nothing came: another share is another try.
    again = treering.round(store, strict)
    assert (again.number, again.sealed, again.share) == (2 + 1, None, 0.5)
    assert [(s.ref, s.share, s.replay) for s in again.sources] == [
        ("support@v1", 0.5, True),
        ("support@v2", 0.5, False),
    ]


def test_what_was_refused_is_not_trained_again_until_something_changes(
    support: treering.Corpus, config: dict[str, Any]
) -> None:
    grow(support, "billing")
    refuses = {**config, "gate": {"max_p99_ms": 1e-6}}
    first = treering.round(support.store, refuses)
    assert first.outcome == "refused"
    assert "p99 latency" in first.why[0]
    second = treering.round(support.store, refuses)
    assert (second.outcome, second.number) == ("not-due", None)
    assert "same records" in second.reasons[0]
    assert treering.round(support.store, config).outcome == "promoted"


def verdict(**scores: tuple[float, float]) -> Verdict:
    rows = [
        CheckedRow(what=f"s@{name}", score=now, previous=was, change=now - was, passed=True)
        for name, (was, now) in scores.items()
    ]
    return Verdict(passed=True, reasons=[], rows=rows, policy=GatePolicy())


@pytest.mark.parametrize(
    ("found", "share"),
    [
        (None, 0.3),
        (verdict(v1=(0.9, 0.9), v2=(0.0, 0.8)), 0.3),
        (verdict(v1=(0.9, 0.87), v2=(0.0, 0.8)), 0.5),
        (verdict(v1=(0.9, 0.9), v2=(0.4, 0.401)), 0.2),
        (verdict(v1=(0.9, 0.85), v2=(0.4, 0.4)), 0.5),  # regression comes first
        (verdict(v2=(0.0, 0.8)), 0.3),
    ],
)
def test_the_share_of_replay_is_30_and_50_after_regression_and_20_when_learning_is_slow(
    found: Verdict | None, share: float
) -> None:
    assert next_share(ReplayRule(), 0.02, found, ["s@v2"])[0] == share


def test_a_run_that_diverges_is_a_failed_round_and_the_next_call_may_begin_another(
    support: treering.Corpus, config: dict[str, Any]
) -> None:
    grow(support, "billing")
    wild = {**config, "train": {**config["train"], "lr": 1e30}}
    result = treering.round(support.store, wild)
    assert (result.outcome, result.ok, result.adapter) == ("failed", False, None)
    assert "diverged" in result.why[0]
    assert treering.round(support.store, config).number == 2


def test_an_interrupted_round_goes_on_with_its_own_config_and_can_be_given_up(
    support: treering.Corpus, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    driver = sys.modules["treering.rounds.driver"]
    grow(support, "billing")

    def breaks(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "train", breaks)
        with pytest.raises(KeyboardInterrupt):
            treering.round(support.store, config)
    other = {**config, "train": {**config["train"], "steps": 7}}
    said: list[str] = []
    assert "goes on at: train" in treering.round(support.store, other, dry_run=True).reasons[0]
    result = treering.round(support.store, other, progress=said.append)
    assert (result.outcome, result.resumed) == ("promoted", True)
    assert any("the config was changed meanwhile" in line for line in said)
    assert support.store.adapters("support")[0].config["steps"] == 40

    grow(support, "shipping")
    with monkeypatch.context() as patch:
        patch.setattr(driver, "score_matrix", breaks)
        with pytest.raises(KeyboardInterrupt):
            treering.round(support.store, config)
    assert treering.round(support.store, config, abandon=True).outcome == "abandoned"
    with pytest.raises(NotFoundError, match="no round of support was interrupted"):
        treering.round(support.store, config, abandon=True)
    assert treering.round(support.store, config).number == 3


@pytest.mark.parametrize("step", ["snapshot", "train", "gate", "end"])
def test_a_step_that_was_done_but_not_written_down_is_not_done_twice(
    support: treering.Corpus, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from treering.store.objects import LocalObjects

    store = support.store
    grow(support, "billing")
    treering.round(store, config)
    grow(support, "shipping")
    create = LocalObjects.create

    def dies(self: LocalObjects, path: str, data: bytes) -> None:
        if path == f"runs/support/000002/{step}.json":
            raise KeyboardInterrupt
        create(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            treering.round(store, config)
    back = step == "end"
    if back:
        store.rollback("support")  # somebody didn't like it, before the round could say that it was through
    result = treering.round(store, config)
    assert (result.outcome, result.resumed) == ("promoted", True)
    assert [s.name for s in support.snapshots()] == ["v1", "v2"]
    assert [a.run for a in store.adapters("support")] == ["support/1", "support/2"]
    events = [event.event for event in Registry(store, "support").events()]
    assert events == ["verdict", "promote", "verdict", "promote"] + ["rollback"] * back
    assert result.production == ("support:1" if back else "support:2")


def test_a_round_after_a_model_from_elsewhere_goes_on_from_its_nearest_ancestor_with_weights(
    support: treering.Corpus, config: dict[str, Any], tmp_path: Path
) -> None:
    store = support.store
    grow(support, "billing")
    treering.round(store, config)
    elsewhere = add_external(store, "support", "hub:x", parent="support:1", lock=store.mix("support@v1").lock())

    def foretell(ref: str) -> None:
        rows = store.load(ref).heldout().to_table(["id", "label"]).to_pylist()
        file = tmp_path / "predictions.jsonl"
        file.write_text("".join(json.dumps({"id": row["id"], "predicted": row["label"]}) + "\n" for row in rows))
        treering.evaluate(store, elsewhere.ref, on=ref, predictions=str(file))

    foretell("support@v1")
    assert treering.gate(store, elsewhere.ref).passed
    store.promote(elsewhere.ref)
    grow(support, "shipping")
    said: list[str] = []
    # The gate compares with production on the new slice too, and only its owner can say what it answers there.
    with pytest.raises(
        NotFoundError, match=r"lack 8 of the 8 records of support@v2.*--predictions FILE; then call again"
    ):
        treering.round(store, config, progress=said.append)
    assert "support:2 was trained elsewhere: training goes on from support:1" in said
    foretell("support@v2")
    result = treering.round(store, config)
    assert (store.adapters("support")[-1].parent, result.outcome) == ("support:1", "promoted")
    assert [(s.ref, s.replay) for s in result.sources] == [("support@v1", True), ("support@v2", False)]


def test_another_promotion_meanwhile_keeps_the_candidate_out(
    support: treering.Corpus, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = support.store
    grow(support, "billing")
    treering.round(store, config)
    by_hand = treering.train(store, store.mix("support@v1"), RoundConfig.of(config).train.changed(seed=1))
    treering.gate(store, by_hand.adapter.ref, {"regression_tolerance": 1.0})
    grow(support, "shipping")
    import sys

    driver = sys.modules["treering.rounds.driver"]
    judged = driver.gate

    def judge(*given: Any, **more: Any) -> Verdict:
        found: Verdict = judged(*given, **more)
        store.promote(by_hand.adapter.ref)
        return found

    monkeypatch.setattr(driver, "gate", judge)
    result = treering.round(store, config)
    assert (result.outcome, result.ok, result.production) == ("kept", False, by_hand.adapter.ref)
    assert "is in production now" in result.why[0]


def test_two_rounds_at_once_are_a_conflict(support: treering.Corpus, config: dict[str, Any]) -> None:
    with support.store.lease("round-support"), pytest.raises(ConflictError, match="another round of support") as caught:
        treering.round(support.store, config)
    assert caught.value.code == "round-running"


class Hook(http.server.BaseHTTPRequestHandler):
    answers: list[int]
    got: list[tuple[str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.headers["Idempotency-Key"], json.loads(body)))
        self.send_response(self.answers.pop(0))
        self.send_header("Location", "/elsewhere")  # where a redirect leads
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    made = type("Made", (Hook,), {"answers": [], "got": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", made
    server.shutdown()
    server.server_close()


def test_the_webhook_is_told_once_and_asked_again_when_the_server_fails(
    support: treering.Corpus,
    config: dict[str, Any],
    hook: tuple[str, type[Hook]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, made = hook
    made.answers[:] = [500, 204]
    monkeypatch.setenv("ROUND_HOOK", url)
    grow(support, "billing")
    result = treering.round(support.store, {**config, "webhook": "$ROUND_HOOK"})
    assert result.notified is not None
    assert (result.notified.ok, result.notified.tries) == (True, 2)
    assert [(key, body["outcome"], body["adapter"]) for key, body in made.got] == [
        ("support/1", "promoted", "support:1")
    ] * 2
    treering.round(support.store, {**config, "webhook": url})
    assert len(made.got) == 2


@pytest.mark.parametrize("answer", [404, 302])
def test_a_webhook_that_refuses_changes_nothing_and_is_reported(
    support: treering.Corpus, config: dict[str, Any], hook: tuple[str, type[Hook]], answer: int
) -> None:
    url, made = hook
    made.answers[:] = [answer] * 5
    grow(support, "billing")
    result = treering.round(support.store, {**config, "webhook": url, "webhook_tries": 2})
    assert result.outcome == "promoted"
    assert result.notified is not None
    assert not result.notified.ok
    assert str(answer) in summary(result)
    assert str(answer) in result.notified.says
    kept = b"".join(support.store.objects.get(path) for path in support.store.objects.list("runs"))
    assert b"127.0.0.1" not in kept  # a webhook's address may be a secret


def test_a_webhook_that_nobody_answers_changes_nothing(support: treering.Corpus, config: dict[str, Any]) -> None:
    grow(support, "billing")
    dead = {**config, "webhook": "http://127.0.0.1:9/", "webhook_tries": 1, "webhook_timeout_s": 0.5}
    result = treering.round(support.store, dead)
    assert (result.outcome, result.notified and result.notified.ok) == ("promoted", False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpse": 1}, "unknown key 'corpse'"),
        ({"corpus": "../x"}, "can't name a corpus"),
        ({"webhook": "ftp://x"}, "neither an http"),
        ({"train": {"steps": 0}}, "steps"),
        ({"train": {"stepz": 1}}, "stepz"),
        ({"gate": {"metric": "vibes"}}, "unknown metric 'vibes'"),
        ({"gate": {"max_p99_ms": -1}}, "max_p99_ms"),
        ({"due": {"min_old": 1}}, "min_old"),
        ({"replay": {"base": 1.0}}, "replay.base"),
        ({"train": {"strategy": "prayer"}}, "unknown strategy 'prayer'"),
        ({"track": "paper:notes"}, "unknown tracker"),
    ],
)
def test_every_bad_key_of_the_config_is_named(
    support: treering.Corpus, config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        treering.round(support.store, {**config, **changes})
    assert said in caught.value.message
    assert support.store.objects.list("runs") == []


def test_the_config_is_a_toml_file_and_all_its_bad_keys_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "round.toml"
    path.write_text('corpus = "support"\nmesage = "x"\n[gate]\nmin_bwtt = 1\n')
    with pytest.raises(UsageError) as caught:
        RoundConfig.of(path)
    assert "mesage" in caught.value.message
    assert "min_bwtt" in caught.value.message
    with pytest.raises(NotFoundError, match="no round config"):
        RoundConfig.of(tmp_path / "none.toml")
    path.write_text('corpus = "support"\n[gate]\nmax_p99_ms = false\nmax_memory_gb = 4\n')
    assert RoundConfig.of(path).gate.max_p99_ms is None


def test_the_summary_says_what_was_learnt_and_what_was_kept(support: treering.Corpus, config: dict[str, Any]) -> None:
    for topic in ("billing", "shipping"):
        grow(support, topic)
        result = treering.round(support.store, config)
    text = summary(result)
    for word in (
        "round 2 of support: promoted support:2",
        "learnt     support@v2",
        "kept       support@v1",
        "BWT",
        "p99",
    ):
        assert word in text, word
    assert [line for line in text.splitlines() if len(line) > 80 and not line.strip().startswith("treering ")] == []
    assert any(line.strip().startswith("treering ") for line in text.splitlines())  # a remedy, in one piece
    assert len(text.splitlines()) <= 36
    assert Registry(support.store, "support").state().production == 2
