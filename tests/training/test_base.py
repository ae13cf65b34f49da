from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny import LAYERS, WIDTH, make_base
from treering.errors import NotFoundError, UsageError
from treering.training.base import Base, mean_pool

TEXTS = [f"{'word ' * (n % 7)}{n}" for n in range(50)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_texts_activations_hang_on_nothing_but_the_text(tiny_path: str, precision: str) -> None:
    base = Base.load(tiny_path, precision=precision)  # type: ignore[arg-type]
    whole = base.encode(TEXTS, depth=1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            some = base.encode(TEXTS[::-3], depth=1)
            assert np.array_equal(some.pooled, whole.pooled[::-3])
            alone = base.encode(TEXTS[11:12], depth=1)
            assert np.array_equal(alone.pooled[0], whole.pooled[11])
            start = int(whole.tokens[:11].sum())
            assert np.array_equal(alone.states, whole.states[start : start + len(alone.states)])
    finally:
        torch.set_num_threads(threads)


def test_activations_have_the_shapes_they_say(tiny: Base) -> None:
    found = tiny.encode(TEXTS, depth=2)
    assert (tiny.width, tiny.layers) == (WIDTH, LAYERS)
    assert found.pooled.shape == (50, WIDTH)
    assert found.pooled.dtype == np.float32
    assert found.states.shape == (int(found.tokens.sum()), WIDTH)
    assert tiny.encode(TEXTS).states.shape == (0, WIDTH)
    assert tiny.encode([]).pooled.shape == (0, WIDTH)


def test_the_top_layers_over_the_states_below_them_give_what_the_whole_base_gives(tiny: Base) -> None:
    found = tiny.encode(["one text", "another, longer text"], depth=2)
    start = 0
    for row, tokens in enumerate(found.tokens.tolist()):
        hidden = torch.from_numpy(found.states[start : start + tokens]).float()[None]
        for layer in tiny.top(2):
            out = layer(hidden, attention_mask=None)
            hidden = out[0] if isinstance(out, tuple) else out
        pooled = mean_pool(hidden, torch.ones(1, tokens, dtype=torch.int64))
        # states are kept in half precision
        assert np.allclose(pooled[0].numpy(), found.pooled[row], atol=5e-3)
        start += tokens


def test_a_text_that_is_too_long_is_cut_and_counted(tiny: Base) -> None:
    found = tiny.encode(["short", "x " * 100])
    assert found.cut == 1
    assert found.tokens.tolist() == [7, 32]


def test_the_digest_is_of_the_content_wherever_it_lies(tiny: Base, tiny_path: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_path, tmp_path / "copy")
    other = make_base(tmp_path / "other", seed=1)
    assert Base.load(str(tmp_path / "copy")).digest == tiny.digest
    assert Base.load(other).digest != tiny.digest


def test_a_base_that_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no directory"):
        Base.load(str(tmp_path / "nowhere"))
    with pytest.raises(NotFoundError, match="can't get base nobody/has-this-model"):
        Base.load("nobody/has-this-model")


def test_pickled_weights_are_refused(tiny_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_path, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="isn't a base") as caught:
        Base.load(str(folder))
    assert "pickles are refused" in str(caught.value.hint)


def test_more_layers_than_there_are_is_a_usage_error(tiny: Base) -> None:
    with pytest.raises(UsageError, match="has 3 layers"):
        tiny.encode(["text"], depth=4)
