from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.tiny import make_base
from treering.training.base import Base
from treering.training.cache import ActivationCache

TEXTS = ["a text", "another text", "a text", "and a third one", "\ud800 lone"]


def files(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.rglob("*.safetensors"))


@pytest.mark.parametrize("depth", [0, 2])
def test_a_text_is_encoded_once_and_comes_back_the_same(tiny: Base, cache_dir: Path, depth: int) -> None:
    memory = ActivationCache(tiny, depth=depth)
    first = ActivationCache(tiny, cache_dir, depth=depth)
    numbers = first.numbers(TEXTS)
    assert numbers[0] == numbers[2]
    assert first.encoded == 4
    again = ActivationCache(tiny, cache_dir, depth=depth)
    later = again.numbers(TEXTS[::-1])
    assert again.encoded == 0
    expected = memory.numbers(TEXTS)
    assert np.array_equal(again.pooled(later)[:], memory.pooled(expected).flip(0))
    if depth:
        states, mask = again.states(later)
        other_states, other_mask = memory.states(expected)
        assert np.array_equal(states, other_states.flip(0))
        assert np.array_equal(mask, other_mask.flip(0))


def test_new_texts_are_added_beside_the_old_ones(tiny: Base, cache_dir: Path) -> None:
    cache = ActivationCache(tiny, cache_dir)
    cache.numbers(["one", "two"])
    numbers = cache.numbers(["three", "one"])
    assert cache.encoded == 3
    assert len(files(cache_dir)) == 2
    assert np.array_equal(cache.pooled(numbers), tiny.encode(["three", "one"]).pooled)


def test_two_writers_of_the_same_texts_agree(tiny: Base, cache_dir: Path) -> None:
    one, two = ActivationCache(tiny, cache_dir), ActivationCache(tiny, cache_dir)
    one.numbers(["a", "b"])
    two.numbers(["b", "c"])
    both = ActivationCache(tiny, cache_dir)
    assert np.array_equal(both.pooled(both.numbers(["a", "b", "c"])), tiny.encode(["a", "b", "c"]).pooled)
    assert both.encoded == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
def test_a_damaged_file_costs_time_and_nothing_else(tiny: Base, cache_dir: Path, damage: str) -> None:
    ActivationCache(tiny, cache_dir).numbers(["a", "b"])
    (path,) = files(cache_dir)
    if damage == "gone":
        shutil.rmtree(cache_dir)
    else:
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-10], "empty": b"", "noise": b"\xff" * len(data)}[damage])
    cache = ActivationCache(tiny, cache_dir)
    assert np.array_equal(cache.pooled(cache.numbers(["b"])), tiny.encode(["b"]).pooled)
    assert cache.encoded == 1


def test_activations_of_another_base_are_never_taken(tiny: Base, cache_dir: Path, tmp_path: Path) -> None:
    other = Base.load(make_base(tmp_path / "other", seed=1))
    ActivationCache(tiny, cache_dir).numbers(["a"])
    cache = ActivationCache(other, cache_dir)
    cache.numbers(["a"])
    assert cache.encoded == 1


def test_the_files_are_plain_safetensors(tiny: Base, cache_dir: Path) -> None:
    ActivationCache(tiny, cache_dir).numbers(["a", "b"])
    found = load_file(files(cache_dir)[0])
    assert {name: value.shape for name, value in found.items()} == {
        "keys": (2, 32),
        "pooled": (2, tiny.width),
        "tokens": (2,),
        "states": (0, tiny.width),
    }
