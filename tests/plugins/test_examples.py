"""Each example of `examples/` as a user runs it: killed in the middle, started again, and every record as it should be."""

from __future__ import annotations

import ast
import re
import secrets
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


def run(command: list[object], watch: Path, *, kill: int | None) -> None:
    """Run it to its end; with `kill`, after a first start that was killed as it asked for the batch of that number."""
    if kill is not None:
        first = start(command, watch=watch, kill=kill)
        assert first.returncode != 0
        assert len(seen(watch)) == kill, first.stderr[-3_000:]
    done = start(command, watch=watch)
    assert done.returncode == 0, done.stderr[-3_000:]


def unbroken_or_killed(at: int) -> pytest.MarkDecorator:
    """Unbroken by default; killed and started again in the long form. In-process tests resume each trainer by default."""
    return pytest.mark.parametrize("kill", [None, pytest.param(at, marks=pytest.mark.slow)])


def test_fifty_steps_of_trl_that_are_killed_see_the_ids_of_an_unbroken_run(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    run([EXAMPLES / "train_trl.py", shared.store, shared.chat, out], tmp_path / "watch", kill=33)
    assert seen(tmp_path / "watch") == bare(shared.mix("chats"), 50, batch_size=4)
    assert (out / "checkpoint-50").is_dir()


def test_a_loop_written_for_torchdata_goes_on_after_a_kill(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("torchdata")
    run([EXAMPLES / "train_torchdata.py", shared.store, tmp_path], tmp_path / "watch", kill=5)
    assert seen(tmp_path / "watch") == bare(shared.mix(), batch_size=8)


@unbroken_or_killed(11)
def test_huggingface_trains_on_what_the_bare_loader_gives(shared: Shared, tmp_path: Path, kill: int | None) -> None:
    pytest.importorskip("transformers")
    mix, out = shared.mix(), tmp_path / "out"
    run([EXAMPLES / "train_hf.py", shared.store, shared.bert, out], tmp_path / "watch", kill=kill)
    assert seen(tmp_path / "watch") == bare(mix, 2 * epoch(mix, 8), batch_size=8)
    assert len(list(out.glob("checkpoint-*"))) == 4


@unbroken_or_killed(7)
def test_two_ranks_of_plain_torch_get_what_the_bare_loader_gives_them(
    shared: Shared, tmp_path: Path, kill: int | None
) -> None:
    run([*torchrun(), EXAMPLES / "train_torchrun.py", shared.store, tmp_path], tmp_path / "watch", kill=kill)
    for rank in range(2):
        expected = bare(shared.mix(), batch_size=8, epochs=2, rank=rank, world_size=2)
        assert seen(tmp_path / "watch", rank) == expected


@unbroken_or_killed(7)
def test_two_ranks_of_lightning_get_what_the_bare_loader_gives_them(
    shared: Shared, tmp_path: Path, kill: int | None
) -> None:
    pytest.importorskip("pytorch_lightning")
    mix = shared.mix()
    run([EXAMPLES / "train_lightning.py", shared.store, tmp_path / "out"], tmp_path / "watch", kill=kill)
    for rank in range(2):
        expected = bare(mix, 2 * epoch(mix, 8), batch_size=8, rank=rank, world_size=2)
        assert seen(tmp_path / "watch", rank) == expected


@pytest.mark.parametrize(
    ("script", "corpus", "model", "batch_size", "batches"),
    [
        ("train_hf", "support", "bert", 8, None),
        pytest.param("train_trl", "chats", "chat", 4, 50, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_two_ranks_of_a_trainer_on_a_machine_without_gpus(
    shared: Shared, tmp_path: Path, script: str, corpus: str, model: str, batch_size: int, batches: int | None
) -> None:
    pytest.importorskip("trl" if script == "train_trl" else "transformers")
    mix = shared.mix(corpus)
    command = [*torchrun(), EXAMPLES / f"{script}.py", shared.store, getattr(shared, model), tmp_path / "out"]
    run(command, tmp_path / "watch", kill=None)
    for rank in range(2):
        expected = bare(mix, batches or 2 * epoch(mix, batch_size), batch_size=batch_size, rank=rank, world_size=2)
        assert seen(tmp_path / "watch", rank) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_of_ray_that_dies_is_started_again_where_the_run_stood(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    watch = tmp_path / "watch"
    (tmp_path / "kills").mkdir()
    done = start(
        [EXAMPLES / "train_ray.py", shared.store, tmp_path / "out"],
        watch=watch, kill=5, WATCH_KILL_ONCE=str(tmp_path / "kills" / "done"), RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
    assert (tmp_path / "kills" / "done").exists()
    for rank in range(2):
        assert seen(watch, rank) == bare(shared.mix(), batch_size=8, rank=rank, world_size=2)
