"""Classifiers out of the store: LoRA in PEFT's layout with the head beside it; other kinds are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import treering
from tests.training.tiny import make_base, records
from treering.cli.app import app
from treering.errors import UsageError
from treering.rounds import export_adapter
from treering.training import TrainConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: str) -> treering.Store:
    """`support:1` is a LoRA classifier, `support:2` a gated one."""
    store = treering.open(tmp_path_factory.mktemp("store"))
    support = store.create("support", "labelled")
    with support.capture() as live:
        live.extend({**one, "split": "heldout" if n % 5 == 4 else "train"} for n, one in enumerate(records("billing")))
    support.snapshot()
    common: dict[str, Any] = {"base": base, "steps": 20, "batch_size": 16, "precision": "fp32", "max_tokens": 32}
    for more in ({"strategy": "lora", "adapt_layers": 2, "rank": 4}, {"strategy": "replay", "bottleneck": 8}):
        treering.train(store, store.mix("support@v1"), TrainConfig(**common, **more), parent=None)
    return store


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_an_exported_classifier_gives_the_same_features_and_logits_in_peft(
    trained: treering.Store, base: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    told = export_adapter(trained, "support:1", tmp_path / "out")
    assert told.task_type == "FEATURE_EXTRACTION"
    assert {"head.safetensors", "classes.json", "adapter_model.safetensors"} <= set(told.files)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / "out")).eval()
    texts = ["bill bill 3", "charge charge 9"]
    tokens = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    said = json.loads((tmp_path / "out" / "classes.json").read_text())
    head = load_file(tmp_path / "out" / "head.safetensors")
    logits = pooled * said["scale"] @ head["weight"].T + head["bias"]
    ours = treering.load_adapter(trained, "support:1")
    np.testing.assert_allclose((pooled * said["scale"]).numpy(), ours.features(texts), atol=2e-3)  # states in float16
    np.testing.assert_allclose(logits.softmax(1).numpy(), ours.probabilities(texts), atol=2e-3)
    assert [said["classes"][n] for n in logits.argmax(1).tolist()] == ours.predict(texts)


def test_a_gated_adapter_is_refused_with_what_to_do_instead(trained: treering.Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of kind gated, which PEFT has no layout for") as caught:
        export_adapter(trained, "support:2", tmp_path / "out")
    assert "treering.load_adapter" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_says_what_it_wrote(trained: treering.Store, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["--store", trained.uri, *words])

    done = run("adapters", "export", "support:1", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert run("adapters", "export", "support:1", str(tmp_path / "out")).exit_code == 5
    assert run("adapters", "export", "support:2", str(tmp_path / "other")).exit_code == 2
    assert "support:1" in run("adapters", "support").stdout
