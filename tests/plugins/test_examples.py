"""Each example of `examples/` as a user runs it: killed in the middle, started again, and every record as it should be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .conftest import Shared
from .running import EXAMPLES, ROOT, bare, epoch, seen, start, torchrun

SCRIPTS = sorted(EXAMPLES.glob("train_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_shorter_than_thirty_lines(script: Path) -> None:
    text = script.read_text("utf-8")
    assert len(text.splitlines()) < 30
    assert ast.get_docstring(ast.parse(text))


def test_the_page_shows_each_example_as_it_is() -> None:
    page = (ROOT / "docs" / "trainers.md").read_text("utf-8")
    shown = re.findall(r'^```python no-run="examples/(\w+).py[^\n]*\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    assert dict(shown) == {path.stem: path.read_text("utf-8") for path in SCRIPTS}


def killed_and_started_again(command: list[object], watch: Path, *, at: int) -> None:
    first = start(command, watch=watch, kill=at)
    assert first.returncode != 0
    assert len(seen(watch)) == at, first.stderr[-3_000:]
    again = start(command, watch=watch)
    assert again.returncode == 0, again.stderr[-3_000:]


def test_huggingface_goes_on_after_a_kill(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    mix, out = shared.mix(), tmp_path / "out"
    killed_and_started_again([EXAMPLES / "train_hf.py", shared.store, shared.bert, out], tmp_path / "watch", at=11)
    assert seen(tmp_path / "watch") == bare(mix, 2 * epoch(mix, 8), batch_size=8)
    assert len(list(out.glob("checkpoint-*"))) == 4


def test_fifty_steps_of_trl_that_are_killed_see_the_ids_of_an_unbroken_run(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    killed_and_started_again([EXAMPLES / "train_trl.py", shared.store, shared.chat, out], tmp_path / "watch", at=33)
    assert seen(tmp_path / "watch") == bare(shared.mix("chats"), 50, batch_size=4)
    assert (out / "checkpoint-50").is_dir()


def test_a_loop_written_for_torchdata_goes_on_after_a_kill(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("torchdata")
    command = [EXAMPLES / "train_torchdata.py", shared.store, tmp_path]
    killed_and_started_again(command, tmp_path / "watch", at=5)
    assert seen(tmp_path / "watch") == bare(shared.mix(), batch_size=8)


def test_two_ranks_of_plain_torch_go_on_after_a_kill(shared: Shared, tmp_path: Path) -> None:
    command = [*torchrun(), EXAMPLES / "train_torchrun.py", shared.store, tmp_path]
    killed_and_started_again(command, tmp_path / "watch", at=7)
    for rank in range(2):
        expected = bare(shared.mix(), batch_size=8, epochs=2, rank=rank, world_size=2)
        assert seen(tmp_path / "watch", rank) == expected


def test_two_ranks_of_lightning_go_on_after_a_kill(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    mix = shared.mix()
    command = [EXAMPLES / "train_lightning.py", shared.store, tmp_path / "out"]
    killed_and_started_again(command, tmp_path / "watch", at=7)
    for rank in range(2):
        expected = bare(mix, 2 * epoch(mix, 8), batch_size=8, rank=rank, world_size=2)
        assert seen(tmp_path / "watch", rank) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_of_ray_that_dies_is_started_again_where_the_run_stood(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    watch = tmp_path / "watch"
    (tmp_path / "kills").mkdir()
    done = start(
        [EXAMPLES / "train_ray.py", shared.store, tmp_path / "out"],
        watch=watch, kill=5, WATCH_KILL_ONCE=str(tmp_path / "kills" / "done"), RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"),
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
    assert (tmp_path / "kills" / "done").exists()
    for rank in range(2):
        assert seen(watch, rank) == bare(shared.mix(), batch_size=8, rank=rank, world_size=2)
