"""Records out of a store: which ones, in which order, and files that are there whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

import treering
from treering.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRecordError,
    NotFoundError,
    StoreError,
    UsageError,
)
from treering.mixing import MixLock, Schedule


@pytest.fixture
def corpus(store: treering.Store) -> treering.Corpus:
    """Two snapshots of 60 and 40 labelled records, and 30 in live."""
    corpus = store.create("support", "labelled", heldout=0.2)
    for name, rows in (("a", 60), ("b", 40), ("c", 30)):
        with corpus.capture() as live:
            live.extend(
                {
                    "id": f"{name}{n:03d}",
                    "text": f"{name} says {n}",
                    "label": f"label {n % 4}",
                    "subject": f"user {n % 5}",
                }
                for n in range(rows)
            )
        if name != "c":
            corpus.snapshot()
    return corpus


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def exported(store: treering.Store, what: Any, **how: Any) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    summary = store.export(what, stream, **how)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert summary.rows == len(found)
    return found


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "store")


# ---- which records


def test_a_ref_gives_every_record_as_loaders_deliver_it(store: treering.Store, corpus: treering.Corpus) -> None:
    corpus.annotate("a003", exclude=True)
    corpus.annotate("a005", correction={"label": "right"})
    found = exported(store, "support@v1")
    assert len(found) == 59
    table = store.load("support@v1").to_table(["id", "text", "label", "split"]).to_pylist()
    assert [{k: one[k] for k in ("id", "text", "label", "split")} for one in found] == [
        row for row in table if row["id"] != "a003"
    ]
    assert next(one for one in found if one["id"] == "a005")["label"] == "right"
    summary = store.export("support@v1", io.BytesIO())
    heldout = sum(one["split"] == "heldout" for one in found)
    assert (summary.excluded, summary.heldout, summary.rows) == (1, heldout, 59)


@pytest.mark.parametrize("source", ["ref", "lock", "again"])
def test_a_correction_is_not_undone_by_what_was_kept_of_the_file(
    store: treering.Store, tmp_path: Path, source: str
) -> None:
    def parts(text: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text}]

    question = {"role": "user", "content": parts("asked")}
    lines = [{"id": f"p{n}", "messages": [question, {"role": "assistant", "content": parts("WRONG")}]} for n in (1, 2)]
    lines[0]["messages"][1]["audio"] = {"id": "WRONG"}
    file = tmp_path / "parts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = store.create("corr", "chat", heldout=0)
    corpus.capture_file(str(file), format="openai")
    corpus.snapshot()
    right = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "right"}]
    corpus.annotate("p1", correction={"messages": right})
    corpus.annotate("p2", correction={"messages": [{"role": "system", "content": "Be right."}, *right]})
    assert not [one for one in exported(store, "corr@v1") if "WRONG" in json.dumps(one)]
    what: Any = "corr@v1"
    if source == "lock":
        with store.mix("corr@v1").loader(batch_size=2, epochs=1) as loader:
            what = loader.lock()
    elif source == "again":
        store.export("corr@v1", tmp_path / "records.jsonl")
        store.create("again", "chat", heldout=0).capture_file(str(tmp_path / "records.jsonl"), format="records")
        what = "again@live"
    for format_ in ("openai", "trl"):
        one, two = sorted(exported(store, what, format=format_), key=lambda line: len(line["messages"]))
        assert one["messages"] == [question, right[1]]  # what wasn't corrected is as it was
        assert two["messages"] == [{"role": "system", "content": "Be right."}, *right]


def test_a_prompt_that_was_corrected_stays_a_prompt_unless_others_speak(store: treering.Store, tmp_path: Path) -> None:
    file = tmp_path / "trl.jsonl"
    file.write_text("".join(json.dumps({"id": i, "prompt": "q", "completion": "WRONG"}) + "\n" for i in "ab"))
    corpus = store.create("corr", "chat", heldout=0)
    corpus.capture_file(str(file), format="trl")
    right = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "right"}]
    corpus.annotate("a", correction={"messages": right})
    corpus.annotate("b", correction={"messages": [{"role": "system", "content": "s"}, *right]})
    lines = sorted(exported(store, "corr@live", format="trl"), key=len)
    assert lines == [
        {"messages": [{"role": "system", "content": "s"}, *right]},
        {"prompt": "q", "completion": "right"},
    ]


def test_the_label_of_a_completion_is_the_newest_outcome(store: treering.Store, tmp_path: Path) -> None:
    file = tmp_path / "kto.jsonl"
    file.write_text(
        "".join(json.dumps({"id": i, "prompt": "q", "completion": i, "label": True}) + "\n" for i in "ab"), "utf-8"
    )
    corpus = store.create("kto", "chat", heldout=0)
    corpus.capture_file(str(file), format="trl")
    corpus.snapshot()
    corpus.annotate("a", outcome=False)
    with store.mix("kto@v1").loader(batch_size=2, epochs=1) as loader:
        lock = loader.lock()
    for what in ("kto@v1", lock):
        assert {line["completion"]: line["label"] for line in exported(store, what, format="trl")} == {
            "a": False,
            "b": True,
        }


@pytest.mark.parametrize("ref", ["support@v1", "support@v1..v2", "support@live", "support@new", "support/some"])
def test_the_splits_of_a_ref_are_disjoint_and_together_all_of_it(
    store: treering.Store, corpus: treering.Corpus, ref: str
) -> None:
    store.load("support@v1").select(rows=20, name="some")
    corpus.annotate("a004", exclude=True)
    ids = {split: [one["id"] for one in exported(store, ref, split=split)] for split in ("all", "train", "heldout")}
    assert sorted(ids["train"] + ids["heldout"]) == sorted(ids["all"])
    assert set(ids["train"]).isdisjoint(ids["heldout"])
    assert sorted(ids["heldout"]) == sorted(store.load(ref).heldout().to_table(["id"]).column(0).to_pylist())
    assert "a004" not in ids["all"]


def test_of_a_pruned_snapshot_the_held_out_records_that_were_kept_go_out(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    before = exported(store, "support@v1", split="heldout")
    corpus.prune(keep=1, dry_run=False, keep_heldout=True)
    assert exported(store, "support@v1", split="heldout") == before
    with pytest.raises(NotFoundError):
        store.export("support@v1", io.BytesIO())


def test_only_the_columns_asked_for_go_out(store: treering.Store, corpus: treering.Corpus) -> None:
    assert set(exported(store, "support@v2", columns=["label", "id"])[0]) == {"id", "label"}
    with pytest.raises(NotFoundError, match="no column 'mood'"):
        store.export("support@v2", io.BytesIO(), columns=["mood"])


# ---- a lock


def delivered(store: treering.Store, lock: MixLock, **how: Any) -> list[tuple[str, str]]:
    """(id, ref) of each row, in the order in which the loader hands them out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of erased records
        loader = lock.loader(store, columns=["id"], **how)
    with loader:
        return [
            (one, loader.refs[ref]) for batch in loader for one, ref in zip(batch["id"], batch["_ref"], strict=True)
        ]


def mixes() -> dict[str, Callable[[treering.Store], MixLock]]:
    refs = ("support@v1", "support@v2", "support@live")
    return {
        "weights": lambda s: s.mix(*refs, weights=[0.3, 0.3, 0.4], seed=7).lock(batch_size=16, epochs=3),
        "stop": lambda s: s.mix(*refs, weights=[1, 8, 1]).lock(batch_size=8, epochs=9, exhaustion="stop"),
        "once": lambda s: s.mix("support@v1", "support@live", replay_ratio=0.3).lock(batch_size=8),
        "balanced": lambda s: s.mix(s.load(refs[0]).balanced("label"), refs[2]).lock(batch_size=8, chunk_rows=1),
        "columns": lambda s: s.mix(*refs).lock(batch_size=8, columns=["text"]),
        "schedule": lambda s: s.mix(
            "support@v1", "support@live", weights=Schedule.of({0: [0.9, 0.1], 128: [0.2, 0.8]})
        ).lock(batch_size=4, epochs=40, pool_rows=32),
    }


@pytest.mark.parametrize("kind", mixes())
def test_a_lock_gives_the_rows_of_its_batches_in_order_with_repeats(
    store: treering.Store, corpus: treering.Corpus, kind: str
) -> None:
    corpus.annotate("a006", correction={"text": "as it should have been"})
    lock = mixes()[kind](store)
    found = exported(store, lock, with_ref=True)
    assert [(one["id"], one["_ref"]) for one in found] == delivered(store, lock)
    assert {one["text"] for one in found if one["id"] == "a006"} <= {"as it should have been"}
    assert not any(one["split"] == "heldout" for one in found)
    if kind == "schedule":
        assert len(found) > 4 * 128  # both stretches of it
    if kind == "weights":
        assert len({one["id"] for one in found}) < len(found)


def test_the_lock_of_a_run_that_grew_gives_the_rows_it_took_in(store: treering.Store, corpus: treering.Corpus) -> None:
    mix = store.mix("support@v1", "support@live", weights=[0.5, 0.5])
    with mix.loader(batch_size=4, columns=["id"], epochs=8, follow=True, pool_rows=16) as loader:
        seen = []
        for number, batch in enumerate(loader):
            seen += batch["id"]
            if number == 3:
                with corpus.capture() as live:
                    live.extend({"id": f"d{n:03d}", "text": "later", "label": "x"} for n in range(50))
        lock = loader.lock()
    assert any(event.kind == "growth" for event in lock.events)
    assert any(one.startswith("d") for one in seen)
    assert [one["id"] for one in exported(store, lock)] == seen


def test_rows_of_a_lock_that_were_erased_are_refused_or_left_out_and_counted(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    lock = mixes()["weights"](store)
    corpus.erase(where={"subject": "user 3"})
    with pytest.raises(ConflictError) as error:
        store.export(lock, io.BytesIO())
    assert error.value.code == "erased"
    assert "--erased skip" in (error.value.hint or "")
    found = exported(store, lock, erased="skip", with_ref=True)
    assert [(one["id"], one["_ref"]) for one in found] == delivered(store, lock, erased="skip")
    assert store.export(lock, io.BytesIO(), erased="skip").erased > 0


def test_an_endless_lock_needs_to_be_told_where_to_end(store: treering.Store, corpus: treering.Corpus) -> None:
    lock = store.mix("support@v1").lock(batch_size=8, epochs=None)
    with pytest.raises(UsageError, match="a file has an end"):
        store.export(lock, io.BytesIO())
    assert len(exported(store, lock, epochs=2)) == 2 * len(exported(store, lock, epochs=1))


def test_a_lock_is_read_from_its_file_and_without_torch(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    mixes()["weights"](store).save(tmp_path / "mix.lock.json")
    code = f"""
        import io, sys, treering
        store = treering.open({str(tmp_path / "store")!r})
        summary = store.export({str(tmp_path / "mix.lock.json")!r}, io.BytesIO())
        assert summary.rows and summary.lock, summary
        store.export("support@v1", io.BytesIO(), format="openai")
        assert not {{"torch", "datasets"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    with pytest.raises(NotFoundError, match=r"no mix lock at other\.json"):
        store.export("other.json", io.BytesIO())


def test_what_makes_no_sense_is_refused(store: treering.Store, corpus: treering.Corpus, tmp_path: Path) -> None:
    lock = store.mix("support@v1").lock(batch_size=8)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("support@v1", {"format": "xml"}, "no format 'xml'"),
        ("support@v1", {"split": "test"}, "all, train or heldout"),
        ("support@v1", {"shard_rows": 0}, "whole number"),
        ("support@v1", {"epochs": 2}, "about a lock"),
        ("support@v1", {"with_ref": True}, "about a lock"),
        ("support@v1", {"erased": "skip"}, "about a lock"),
        (lock, {"split": "train"}, "no held-out rows"),
        (lock, {"with_ref": True, "format": "openai"}, "no place for _ref"),
        (lock, {"erased": "maybe"}, "'refuse' or 'skip'"),
        (lock, {"epochs": -1}, "whole number"),
        (5, {}, "neither a ref nor a mix lock"),
        ("support@v1", {"columns": "id"}, "list of names"),
    ]
    for what, how, said in wrong:
        with pytest.raises(UsageError, match=said):
            store.export(what, tmp_path / "out.jsonl", **how)
    with pytest.raises(UsageError, match="compressed inside") as error:
        store.export("support@v1", tmp_path / "o.gz", format="hf")
    assert error.value.hint == "it is the name of a folder: end it without .gz"
    for to, how, said in [
        (tmp_path / "o.parquet.gz", {"format": "parquet"}, "compressed inside"),
        (tmp_path / "o.jsonl.bz2", {}, "can't compress to .bz2"),
        (tmp_path / "store", {}, "is a folder"),
        (io.BytesIO(), {"shard_rows": 5}, "several files"),
        (io.BytesIO(), {"format": "hf"}, "a folder"),
        (7, {}, "neither a path nor"),
        ("/", {}, "isn't the name of a file"),
    ]:
        with pytest.raises(UsageError, match=said):
            store.export("support@v1", to, **how)
    assert left_in(tmp_path) == []


# ---- files


def test_a_name_that_is_taken_is_refused_unless_forced(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(AlreadyExistsError, match=r"out\.jsonl is there already"):
        store.export("support@v1", out)
    assert out.read_text() == "mine\n"
    store.export("support@v1", out, force=True)
    assert len(rows_of(out)) == 60
    assert left_in(tmp_path) == ["out.jsonl"]


def test_an_export_that_fails_leaves_what_was_there_and_nothing_else(store: treering.Store, tmp_path: Path) -> None:
    chats = store.create("chats", "chat")
    with chats.capture() as live:
        live.extend({"id": f"r{n}", "messages": [{"role": "user", "content": "hi"}]} for n in range(50))
        live.add({"id": "silent", "messages": [{"role": "user"}]})
    out = tmp_path / "out.jsonl"
    with pytest.raises(InvalidRecordError, match="record silent has no form in openai"):
        store.export("chats@live", out, format="openai")
    assert left_in(tmp_path) == []
    out.write_text("mine\n")
    with pytest.raises(InvalidRecordError):
        store.export("chats@live", out, format="openai", force=True)
    assert (left_in(tmp_path), out.read_text()) == (["out.jsonl"], "mine\n")
    summary = store.export("chats@live", out, format="openai", force=True, skip_unfit=True)
    assert (summary.rows, summary.left_out, summary.problems[0].id) == (50, 1, "silent")
    assert len(rows_of(out)) == 50


def test_a_name_that_is_taken_while_it_is_being_written_is_left_to_whoever_took_it(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(AlreadyExistsError):
        store.export("support@v1", out, progress=lambda done, total: out.write_text("theirs") and None)
    assert (left_in(tmp_path), out.read_text()) == (["out.jsonl"], "theirs")


def test_a_killed_export_leaves_no_file_under_the_final_name(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    code = f"""
        import os, signal, treering
        from treering.mixing import target
        target._Staged.commit = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        treering.open({str(tmp_path / "store")!r}).export("support@v1..v2", {str(tmp_path / "out.jsonl.gz")!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in left_in(tmp_path) if not name.startswith(".")] == []
    assert len(left_in(tmp_path)) == 1  # all that was written lies in one hidden folder
    store.export("support@v1", tmp_path / "out.jsonl.gz")  # and is in nobody's way


@pytest.mark.parametrize("disk_full_at", [0, 1])
def test_a_disk_that_fails_is_an_error_and_leaves_nothing(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_full_at: int
) -> None:
    from treering.mixing import target

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if disk_full_at == 0:
        monkeypatch.setattr(target.Sink, "pass_on", full)
    else:
        monkeypatch.setattr(target.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.export("support@v1", tmp_path / "out.jsonl")
    assert left_in(tmp_path) == []


def test_shards_are_numbered_of_how_many_and_older_ones_give_way(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    whole = exported(store, "support@v1")
    summary = store.export("support@v1", tmp_path / "out.jsonl.gz", shard_rows=25)
    names = [f"out-{n:05d}-of-00003.jsonl.gz" for n in range(3)]
    assert left_in(tmp_path) == names == [file.name for file in summary.files]
    assert [file.rows for file in summary.files] == [25, 25, 10]
    lines = b"".join(gzip.decompress((tmp_path / name).read_bytes()) for name in names).splitlines()
    assert [json.loads(line) for line in lines] == whole
    for file in summary.files:
        assert (tmp_path / file.name).stat().st_size == file.bytes
    with pytest.raises(AlreadyExistsError, match="and 2 more"):
        store.export("support@v1", tmp_path / "out.jsonl.gz", shard_rows=40)
    store.export("support@v1", tmp_path / "out.jsonl.gz", shard_rows=40, force=True)
    assert left_in(tmp_path) == [f"out-{n:05d}-of-00002.jsonl.gz" for n in range(2)]


def test_a_suffix_compresses_and_the_same_records_make_the_same_bytes(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    plain = store.export("support@v1", tmp_path / "a.jsonl").files[0]
    for suffix in (".gz", ".zst"):
        one, two = (store.export("support@v1", tmp_path / f"{name}.jsonl{suffix}").files[0] for name in "ab")
        assert one.sha256 == two.sha256
        assert one.bytes < plain.bytes
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    with pa.input_stream(tmp_path / "a.jsonl.zst", compression="zstd") as file:
        assert file.read() == (tmp_path / "a.jsonl").read_bytes()


class Elsewhere(LocalFileSystem):
    """A file system where a file that is being uploaded can be seen."""

    protocol = "elsewhere"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("elsewhere://")))

    def put_file(self, lpath: str, rpath: str, **how: Any) -> None:
        assert Path(rpath).name.startswith(".")
        super().put_file(lpath, rpath, **how)


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[list[str]]:
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    memory = fsspec.filesystem("memory")
    yield ["memory://bucket/out", f"elsewhere://{tmp_path}/out", f"file://{tmp_path}/there"]
    for path in memory.find("/"):
        memory.rm(path)


def test_any_fsspec_url_will_do(store: treering.Store, corpus: treering.Corpus, urls: list[str]) -> None:
    whole = exported(store, "support@v1")
    for url in urls:
        summary = store.export("support@v1", f"{url}/one.jsonl.gz")
        assert summary.paths == [f"{url}/one.jsonl.gz".removeprefix("file://")]
        with fsspec.open(f"{url}/one.jsonl.gz", "rt", compression="infer") as file:
            assert [json.loads(line) for line in file] == whole
        with pytest.raises(AlreadyExistsError):
            store.export("support@v1", f"{url}/one.jsonl.gz")
        store.export("support@v1", f"{url}/one.jsonl.gz", force=True)
        store.export("support@v1", f"{url}/part.parquet", format="parquet", shard_rows=25)
        store.export("support@v1", f"{url}/part.parquet", format="parquet", shard_rows=50, force=True)
        store.export("support@v1", f"{url}/folder", format="hf")
        store.export("support@v1", f"{url}/folder", format="hf", force=True)
        fs, path = fsspec.url_to_fs(url)
        found = sorted(name.removeprefix(path).lstrip("/") for name in fs.find(path))
        assert found == [
            *(f"folder/{name}" for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")),
            "one.jsonl.gz",
            *(f"part-{n:05d}-of-00002.parquet" for n in range(2)),
        ]
    with pytest.raises(StoreError, match="can't write nowhere://x"):
        store.export("support@v1", "nowhere://x/y.jsonl")


def test_parquet_reads_back_as_the_same_table(store: treering.Store, corpus: treering.Corpus, tmp_path: Path) -> None:
    store.export("support@v1", tmp_path / "out.parquet", format="parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(store.load("support@v1").to_table())


def test_progress_tells_how_far_and_of_how_many(store: treering.Store, corpus: treering.Corpus) -> None:
    told: list[tuple[int, int | None]] = []
    store.export("support@v1..v2", io.BytesIO(), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (100, 100)
    lock = mixes()["weights"](store)
    store.export(lock, io.BytesIO(), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]


# ---- folders for datasets


def test_datasets_opens_the_folder_with_the_features_it_names(store: treering.Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    chats = store.create("chats", "chat")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    with chats.capture() as live:
        live.extend(
            {
                "id": f"r{n:03d}",
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", **({"tool_calls": [call]} if n % 2 else {"content": "yo"})},
                ],
            }
            for n in range(120)
        )
    store.export("chats@live", tmp_path / "hf", format="hf", shard_rows=50)
    found = datasets.load_from_disk(str(tmp_path / "hf"))
    table = store.load("chats@live").to_table()
    assert found.data.table.to_pylist() == table.to_pylist()
    assert found.features["messages"].feature["tool_calls"].feature["function"]["arguments"].dtype == "string"
    assert found.features["ts"].dtype == "timestamp[us, tz=UTC]"
    assert found.features == datasets.Features.from_arrow_schema(table.schema.remove_metadata())
    assert found.filter(lambda row: row["id"] == "r007")[0]["messages"][1]["tool_calls"] == [
        call
    ]  # leaves a cache there
    again = datasets.load_dataset("arrow", data_files=str(tmp_path / "hf" / "data-*.arrow"), split="train", cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert again.features == found.features
    with pytest.raises(AlreadyExistsError):
        store.export("chats@live", tmp_path / "hf", format="hf")
    store.export("chats@live", tmp_path / "hf", format="hf", split="heldout", force=True)
    assert len(datasets.load_from_disk(str(tmp_path / "hf"))) == len(store.heldout("chats@live"))


def test_a_folder_that_holds_more_than_a_dataset_is_never_replaced(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"more than a dataset: thesis\.txt"):
        store.export("support@v1", tmp_path / "home", format="hf", force=True)
    with pytest.raises(AlreadyExistsError):
        store.export("support@v1", tmp_path / "home", format="hf")
    assert os.listdir(tmp_path / "home") == ["thesis.txt"]


# ---- formats of others


def test_a_format_of_another_package_is_found_and_a_broken_one_is_named(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "shouting-1.0.dist-info").mkdir(parents=True)
    (site / "shouting-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (site / "shouting-1.0.dist-info" / "entry_points.txt").write_text(
        "[treering.exporters]\nshout = shouting:Shout\nmute = shouting:Mute\nnone = shouting:NONE\nrecords = shouting:Shout\n"
    )
    (site / "shouting.py").write_text(
        textwrap.dedent("""
        from treering.formats.writers import JsonLines

        class Shout(JsonLines):
            name = "shout"

            @property
            def holds(self):
                return frozenset({"text"})

            def lines(self, record):
                yield {"loud": record["text"].upper()}
                yield {"again": record["text"].upper()}

        NONE = 5
        """)
    )
    monkeypatch.syspath_prepend(site)
    stream = io.BytesIO()
    summary = store.export("support@v2", stream, format="shout")
    assert stream.getvalue().splitlines()[0].startswith(b'{"loud":"B SAYS')
    assert (summary.rows, stream.getvalue().count(b"\n"), summary.dropped["label"]) == (40, 80, 40)
    assert exported(store, "support@v2")[0]["id"].startswith("b")  # ours stays ours
    for name, why in (("mute", "has no attribute 'Mute'"), ("none", "not a subclass")):
        with pytest.raises(UsageError, match=f"{name} of the package shouting can't be loaded: .*{why}"):
            store.export("support@v2", io.BytesIO(), format=name)
