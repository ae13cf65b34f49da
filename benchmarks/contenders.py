"""Who runs in `loader.py`: treering, the references and the peers, each in the fastest form we found for it.

Every contender delivers the same thing: endless shuffled batches of 256 rows from three corpora at 30/30/40, 128 int32
tokens and a label as torch tensors (`text` contenders: the text too, as Python strings), in one process. A peer that
keeps exact shares only by hand is fed by hand; one that mixes in expectation mixes itself. `prepare` writes a
contender's own form of the data once, untimed; `run` is what is timed.

Peers come with the `bench` extra. MosaicML Streaming needs an environment of its own (it wants numpy < 2.2 and
transformers < 5): `loader.py --python mosaic=…`. Knows no clock and prints nothing (loader.py).
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

WEIGHTS = [0.3, 0.3, 0.4]
BATCH = 256
COUNTS = (77, 77, 102)  # rows of each source in a batch, for those who have no shares
TOKENS = 128
LABELS = 150
NAMES = ("one", "two", "three")

Batches = Iterator[tuple[torch.Tensor, torch.Tensor, Any]]  # (256, 128) int32, (256,) int64, list of str or None


class Unavailable(Exception):  # noqa: N818 - says a state of the environment, not a mistake
    """Raised where a contender can't run here; the text says why."""


@dataclass(frozen=True)
class Data:
    """Where the data of one benchmark lies: a treering store, and its training rows as Arrow files for the peers."""

    root: Path

    def table(self, name: str) -> pa.Table:
        """The training rows of a corpus, memory-mapped: text, tokens, target."""
        return pa.ipc.open_file(pa.memory_map(str(self.root / f"{name}.arrow"))).read_all()

    def blocks(self, name: str, rows: int = 10_000) -> Iterator[pa.RecordBatch]:
        """The same in pieces, for writers."""
        yield from self.table(name).combine_chunks().to_batches(max_chunksize=rows)

    def own(self, key: str) -> Path:
        """The folder of one contender."""
        return self.root / key


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    key: str
    name: str
    kind: Literal["reference", "treering", "peer"]
    run: Callable[[Data], Batches]
    shares: str  # exact | by hand | in expectation | –
    before: Callable[[], None] | None = None  # called before the imports
    modules: tuple[str, ...] = ()  # imported before the clock starts; a missing one makes it unavailable
    packages: tuple[str, ...] = ()  # distributions whose versions are printed
    prepare: Callable[[Data], None] | None = None
    shared: str | None = None  # the folder it prepares, when several contenders use one
    text: bool = False
    stored: bool = True  # reads from a store of records, not from arrays made for the purpose


def tokens_of(batch: Any) -> np.ndarray[Any, Any]:
    """The token column of a record batch as (rows, 128), without a copy."""
    array: np.ndarray[Any, Any] = batch.column("tokens").flatten().to_numpy().reshape(-1, TOKENS)
    return array


def stacked(
    tokens: list[Any], label: list[Any], text: list[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Single rows as a batch."""
    return torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.array(label, dtype=np.int64)), text


# ---- references


def write_arrays(data: Data) -> None:
    """Decoded columns as .npy files."""
    data.own("arrays").mkdir()
    for name in NAMES:
        table = data.table(name).combine_chunks()
        np.save(data.own("arrays") / f"{name}.tokens.npy", tokens_of(table.to_batches()[0]))
        np.save(data.own("arrays") / f"{name}.label.npy", table["target"].to_numpy())


def mapped(data: Data, column: str) -> list[np.ndarray[Any, Any]]:
    """One memory-mapped column of each corpus."""
    return [np.load(data.own("arrays") / f"{name}.{column}.npy", mmap_mode="r") for name in NAMES]


def gather(data: Data) -> Batches:
    """The limit: what a good engineer writes by hand over decoded columns.

    Timed: random row numbers per source and batch, one fancy index per source and column, one concatenation per
    column, `torch.from_numpy`.
    """
    tokens, labels = mapped(data, "tokens"), mapped(data, "label")
    rng = np.random.default_rng(0)
    while True:
        rows = [rng.integers(0, len(column), k) for column, k in zip(tokens, COUNTS, strict=True)]
        picked = np.concatenate([column[i] for column, i in zip(tokens, rows, strict=True)])
        label = np.concatenate([column[i] for column, i in zip(labels, rows, strict=True)])
        yield torch.from_numpy(picked), torch.from_numpy(label), None


def write_lancedb(data: Data) -> None:
    """One LanceDB table a corpus, compacted, with LanceDB's defaults."""
    import lancedb

    catalogue = lancedb.connect(data.own("lancedb"))
    for name in NAMES:
        table = data.table(name)
        catalogue.create_table(name, pa.RecordBatchReader.from_batches(table.schema, table.to_batches(50_000)))


def scan(data: Data) -> Batches:
    """Lance's sequential scan of the two columns, cut into batches: no shuffle, no mix."""
    import lance

    while True:
        for name in NAMES:
            found = lance.dataset(str(data.own("lancedb") / f"{name}.lance"))
            for batch in found.to_batches(columns=["tokens", "target"]):
                tokens, label = tokens_of(batch), batch.column("target").to_numpy()
                for low in range(0, len(label) - BATCH + 1, BATCH):
                    yield (
                        torch.from_numpy(tokens[low : low + BATCH].copy()),
                        torch.from_numpy(label[low : low + BATCH].copy()),
                        None,
                    )


def chunks_by_hand(data: Data) -> Batches:
    """64-row chunks in random order, the rows of 64 batches in one request for each source, permuted in memory."""
    import lance

    rng = np.random.default_rng(0)

    def blocks(name: str, rows: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        found = lance.dataset(str(data.own("lancedb") / f"{name}.lance"))
        chunks = found.count_rows() // 64
        wanted = min(-(-rows // 64), chunks)
        while True:
            order = rng.permutation(chunks)
            for low in range(0, chunks - wanted + 1, wanted):
                starts = np.sort(order[low : low + wanted]) * 64
                picked = found.take((starts[:, None] + np.arange(64)).reshape(-1), columns=["tokens", "target"])
                inside = rng.permutation(len(picked))[:rows]
                batch = picked.combine_chunks().to_batches()[0]
                yield tokens_of(batch)[inside], batch.column("target").to_numpy()[inside]

    streams = [blocks(name, 64 * k) for name, k in zip(NAMES, COUNTS, strict=True)]
    while True:
        parts = [next(stream) for stream in streams]
        for number in range(min(len(label) // k for (_, label), k in zip(parts, COUNTS, strict=True))):
            cut = [slice(number * k, (number + 1) * k) for k in COUNTS]
            yield (
                torch.from_numpy(np.concatenate([part[0][c] for part, c in zip(parts, cut, strict=True)])),
                torch.from_numpy(np.concatenate([part[1][c] for part, c in zip(parts, cut, strict=True)])),
                None,
            )


# ---- treering


def has_cache() -> bool:
    """Whether this treering has a snapshot cache."""
    import treering

    return "cache" in inspect.signature(treering.Mix.loader).parameters


def ours(data: Data, *, text: bool = False, warm: bool = False, **options: Any) -> Batches:
    """A treering loader, made anew; cold unless `warm`."""
    import treering

    if has_cache():
        options["cache"] = warm
    store = treering.open(data.root / "store")
    mix = treering.mix(*[store.load(f"{name}@v1") for name in NAMES], weights=WEIGHTS, seed=1)
    columns = ["tokens", "target", "text"] if text else ["tokens", "target"]
    with mix.loader(batch_size=BATCH, columns=columns, epochs=None, **options) as loader:
        for batch in loader:
            yield batch["tokens"], batch["target"], batch.get("text")


def warm_up(data: Data, *, text: bool = False) -> None:
    """Build the snapshot cache of the two columns, or of the text; its time stands in the table."""
    import treering

    store = treering.open(data.root / "store")
    cache: Any = getattr(store, "cache", None)
    if cache is None:
        raise Unavailable("this treering has no snapshot cache")
    for name in NAMES:
        cache.build(store.load(f"{name}@v1"), ["tokens", "target", *(["text"] if text else [])])
    data.own("cached-text" if text else "cached").mkdir()


# ---- torchdata


def torchdata(data: Data) -> Batches:
    """StatefulDataLoader over the memmaps; a batch's rows are gathered at once, the sampler draws them by weight."""
    from torch.utils.data import Dataset, WeightedRandomSampler
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Rows(Dataset[Any]):
        def __init__(self) -> None:
            self.tokens, self.labels = mapped(data, "tokens"), mapped(data, "label")
            self.first = np.cumsum([0, *map(len, self.labels)])

        def __len__(self) -> int:
            return int(self.first[-1])

        def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            at = np.array(rows)
            source = np.searchsorted(self.first, at, side="right") - 1
            inside = [(at - self.first[s])[source == s] for s in range(len(NAMES))]
            tokens = np.concatenate([column[i] for column, i in zip(self.tokens, inside, strict=True)])
            label = np.concatenate([column[i] for column, i in zip(self.labels, inside, strict=True)])
            return torch.from_numpy(tokens), torch.from_numpy(label)

    rows = Rows()
    each = np.concatenate(
        [np.full(len(column), w / len(column)) for column, w in zip(rows.labels, WEIGHTS, strict=True)]
    )
    while True:
        weights: Any = torch.from_numpy(each)  # typed as a sequence; a list would be made into a tensor again
        sampler = WeightedRandomSampler(weights, len(rows), replacement=True)
        loader = StatefulDataLoader(
            rows, batch_size=BATCH, sampler=sampler, collate_fn=lambda batch: batch, drop_last=True
        )
        for tokens, label in loader:
            yield tokens, label, None


# ---- litdata


def write_litdata(data: Data, *, blocks: bool = False) -> None:
    """Chunks of 64 MB: a tensor and a number a record, or (`blocks`) one row of tokens with the label behind them."""
    from litdata.streaming import Cache
    from litdata.streaming.item_loader import TokensLoader

    for name in NAMES:
        folder = data.own("litdata-tokens" if blocks else "litdata") / name
        folder.mkdir(parents=True)
        if blocks:
            cache = Cache(str(folder), chunk_size=(TOKENS + 1) * 120_000, item_loader=TokensLoader(TOKENS + 1))
        else:
            cache = Cache(str(folder), chunk_bytes="64MB")
        row = 0
        for block in data.blocks(name):
            for tokens, label in zip(tokens_of(block), block.column("target").to_pylist(), strict=True):
                if blocks:
                    cache[row] = torch.from_numpy(np.append(tokens, np.int32(label)))
                else:
                    cache[row] = {"tokens": torch.from_numpy(tokens.copy()), "label": label}
                row += 1
        cache.done()
        cache.merge()


def litdata(data: Data, *, blocks: bool = False) -> Batches:
    """CombinedStreamingDataset through litdata's own loader.

    Items are shuffled over the whole chunk: the default, windows of 256 neighbours, keeps 0.4 of a full shuffle's label
    entropy. Decoded one by one, since decoding whole windows for single items is slower then.
    """
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    folder = data.own("litdata-tokens" if blocks else "litdata")
    parts = [
        StreamingDataset(
            str(folder / name),
            item_loader=TokensLoader(TOKENS + 1) if blocks else None,
            shuffle=True,
            seed=1,
            item_shuffle_window="full",
            batch_decode=False,
        )
        for name in NAMES
    ]
    mixed = CombinedStreamingDataset(datasets=parts, seed=1, weights=WEIGHTS, iterate_over_all=False)
    loader = StreamingDataLoader(mixed, batch_size=BATCH, num_workers=0, drop_last=True)
    while True:
        for batch in loader:
            if blocks:
                yield batch[:, :TOKENS], batch[:, TOKENS].to(torch.int64), None
            else:
                yield batch["tokens"], batch["label"], None


# ---- HF datasets


def write_hf(data: Data) -> None:
    """Arrow streams, the form HF datasets keeps its cache in."""
    data.own("hf").mkdir()
    for name in NAMES:
        table = data.table(name)
        with pa.ipc.new_stream(str(data.own("hf") / f"{name}.arrow"), table.schema) as stream:
            for block in data.blocks(name, 1_000):
                stream.write_batch(block)


def hf(data: Data, *, text: bool = False, arrow: bool = False) -> Batches:
    """Map-style datasets, shuffled, interleaved by probabilities, read in batches.

    In torch's format, as its documentation has it, or (`arrow`) in Arrow's, with the columns turned into tensors here.
    """
    import datasets

    columns = ["tokens", "target", "text"] if text else ["tokens", "target"]
    for epoch in count():
        parts = [
            datasets.Dataset.from_file(str(data.own("hf") / f"{name}.arrow"))
            .select_columns(columns)
            .shuffle(seed=epoch)
            for name in NAMES
        ]
        mixed = datasets.interleave_datasets(parts, probabilities=WEIGHTS, seed=epoch)
        for batch in mixed.with_format("arrow" if arrow else "torch").iter(BATCH, drop_last_batch=True):
            if arrow:
                rows = batch.combine_chunks().to_batches()[0]
                tokens, label = tokens_of(rows), rows.column("target").to_numpy()
                words = rows.column("text").to_pylist() if text else None
                yield torch.from_numpy(tokens.copy()), torch.from_numpy(label.copy()), words
            else:
                yield batch["tokens"].to(torch.int32), batch["target"], batch["text"] if text else None


# ---- LanceDB


def permutation(data: Data, *, clump_size: int | None = None) -> Batches:
    """LanceDB's Permutation, one per source, mixed by hand, read as Arrow and joined by columns: its fastest form."""
    import lancedb
    from lancedb.permutation import Permutation, permutation_builder

    catalogue = lancedb.connect(data.own("lancedb"))

    def endless(name: str, rows: int) -> Iterator[pa.RecordBatch]:
        table = catalogue.open_table(name)
        for seed in count():
            order = permutation_builder(table).shuffle(seed=seed, clump_size=clump_size).execute()
            found = Permutation.from_tables(table, order).select_columns(["tokens", "target"]).with_format("arrow")
            yield from found.iter(rows, skip_last_batch=True)

    streams = [endless(name, rows) for name, rows in zip(NAMES, COUNTS, strict=True)]
    while True:
        parts = [next(stream) for stream in streams]
        yield (
            torch.from_numpy(np.concatenate([tokens_of(part) for part in parts])),
            torch.from_numpy(np.concatenate([part.column("target").to_numpy() for part in parts])),
            None,
        )


def lancedb_streaming(data: Data, *, clump_size: int | None = None) -> Batches:
    """LanceDB's StreamingDataset, one per source, mixed by hand; a transform turns its blocks into numpy rows."""
    import lancedb
    from lancedb.streaming import StreamingDataset

    catalogue = lancedb.connect(data.own("lancedb"))

    def rows_of(block: pa.RecordBatch) -> list[Any]:
        return list(zip(tokens_of(block), block.column("target").to_pylist(), strict=True))

    def endless(name: str) -> Iterator[Any]:
        for epoch in count():
            yield from StreamingDataset(
                catalogue.open_table(name),
                shuffle_seed=1,
                epoch=epoch,
                columns=["tokens", "target"],
                shuffle_clump_size=clump_size,
                transform=rows_of,
            )

    streams = [endless(name) for name in NAMES]
    while True:
        rows = [next(stream) for stream, k in zip(streams, COUNTS, strict=True) for _ in range(k)]
        yield stacked([row[0] for row in rows], [row[1] for row in rows])


# ---- Deep Lake


def write_deeplake(data: Data) -> None:
    """One dataset a corpus, with Deep Lake's defaults."""
    import deeplake

    for name in NAMES:
        made = deeplake.create(f"file://{data.own('deeplake') / name}")
        made.add_column("tokens", deeplake.types.Array("int32", shape=[TOKENS]))
        made.add_column("label", deeplake.types.Int64())
        for block in data.blocks(name, 50_000):
            made.append({"tokens": tokens_of(block).copy(), "label": block.column("target").to_numpy().copy()})
        made.commit()


def deeplake_gather(data: Data) -> Batches:
    """Random rows of a column in one request for each source, mixed by hand."""
    import deeplake

    found = [deeplake.open_read_only(f"file://{data.own('deeplake') / name}") for name in NAMES]
    columns = [(one["tokens"], one["label"]) for one in found]
    rng = np.random.default_rng(0)
    while True:
        rows = [rng.integers(0, len(one), k).tolist() for one, k in zip(found, COUNTS, strict=True)]
        tokens = np.concatenate([np.asarray(column[0][i]) for column, i in zip(columns, rows, strict=True)])
        label = np.concatenate([np.asarray(column[1][i]) for column, i in zip(columns, rows, strict=True)])
        yield torch.from_numpy(tokens), torch.from_numpy(label.reshape(-1).astype(np.int64)), None


def deeplake_pytorch(data: Data) -> Batches:
    """`ds.pytorch()` in torch's DataLoader, one per source, mixed by hand."""
    import deeplake
    from torch.utils.data import DataLoader

    def endless(name: str, rows: int) -> Iterator[Any]:
        found = deeplake.open_read_only(f"file://{data.own('deeplake') / name}").pytorch()
        while True:
            yield from DataLoader(found, batch_size=rows, shuffle=True, drop_last=True)

    streams = [endless(name, rows) for name, rows in zip(NAMES, COUNTS, strict=True)]
    while True:
        parts = [next(stream) for stream in streams]
        yield (
            torch.cat([part["tokens"] for part in parts]),
            torch.cat([part["label"].reshape(-1).to(torch.int64) for part in parts]),
            None,
        )


# ---- MosaicML Streaming


def stand_in_for_torchvision() -> None:
    """Let `streaming` import where torchvision can't (its PyPI wheel doesn't load beside a CPU build of torch).

    Only streaming's vision datasets use it, and they aren't measured.
    """
    try:
        import torchvision  # noqa: F401 - only whether it can be
    except Exception:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module: Any = ModuleType(f"torchvision{name}")
            module.__spec__ = ModuleSpec(f"torchvision{name}", None)
            module.__file__ = "stand-in"
            module.__path__ = []
            for one in ("VisionDataset", "CIFAR10", "to_tensor"):
                setattr(module, one, type(one, (), {}))
            sys.modules[f"torchvision{name}"] = module


def write_mosaic(data: Data) -> None:
    """MDS shards, uncompressed."""
    from streaming import MDSWriter

    for name in NAMES:
        columns = {"tokens": f"ndarray:int32:{TOKENS}", "label": "int"}
        with MDSWriter(out=str(data.own("mosaic") / name), columns=columns) as writer:
            for block in data.blocks(name):
                for tokens, label in zip(tokens_of(block), block.column("target").to_pylist(), strict=True):
                    writer.write({"tokens": tokens, "label": label})


def mosaic(data: Data) -> Batches:
    """Three streams, stratified batches, torch's DataLoader."""
    from streaming import Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    streams = [
        Stream(local=str(data.own("mosaic") / name), proportion=w) for name, w in zip(NAMES, WEIGHTS, strict=True)
    ]
    mixed = StreamingDataset(
        streams=streams, batch_size=BATCH, shuffle=True, shuffle_seed=1, batching_method="stratified"
    )
    while True:
        for batch in DataLoader(mixed, batch_size=BATCH, num_workers=0, drop_last=True):
            yield batch["tokens"], batch["label"], None


# ---- webdataset


def write_webdataset(data: Data) -> None:
    """Tar shards of 10,000 samples, tokens as .npy and the label as text."""
    import webdataset

    for name in NAMES:
        (data.own("webdataset") / name).mkdir(parents=True)
        row = 0
        pattern = str(data.own("webdataset") / name / "%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=10_000, verbose=0) as writer:
            for block in data.blocks(name):
                for tokens, label in zip(tokens_of(block), block.column("target").to_pylist(), strict=True):
                    writer.write({"__key__": f"{row:09d}", "tokens.npy": tokens, "label.cls": label})
                    row += 1


def webdataset(data: Data) -> Batches:
    """RandomMix of three shuffled, repeated shard lists; buffers of up to 10,000 samples, begun at 1,000."""
    import webdataset as wds

    def source(name: str) -> Any:
        shards = sorted(map(str, (data.own("webdataset") / name).glob("*.tar")))
        found = wds.WebDataset(shards, shardshuffle=len(shards), seed=1).repeat().shuffle(10_000, initial=1_000)
        return found.decode().to_tuple("tokens.npy", "label.cls")

    mixed = iter(wds.RandomMix([source(name) for name in NAMES], WEIGHTS))
    while True:
        rows = [next(mixed) for _ in range(BATCH)]
        yield stacked([row[0] for row in rows], [row[1] for row in rows])


# ---- Grain


def write_grain(data: Data) -> None:
    """One ArrayRecord file a corpus, a row of 520 bytes a record."""
    from array_record.python.array_record_module import ArrayRecordWriter

    data.own("grain").mkdir()
    for name in NAMES:
        writer = ArrayRecordWriter(str(data.own("grain") / f"{name}.arrayrecord"), "group_size:1")
        for block in data.blocks(name):
            for tokens, label in zip(tokens_of(block), block.column("target").to_numpy(), strict=True):
                buffer = io.BytesIO()
                buffer.write(tokens.tobytes())
                buffer.write(label.tobytes())
                writer.write(buffer.getvalue())
        writer.close()


def grain(data: Data) -> Batches:
    """MapDataset.mix of three shuffled sources, batched, read by Grain's own threads."""
    import grain

    def decoded(record: bytes) -> tuple[np.ndarray[Any, Any], int]:
        return np.frombuffer(record, dtype=np.int32, count=TOKENS), int.from_bytes(record[TOKENS * 4 :], "little")

    parts = [
        grain.MapDataset.source(grain.sources.ArrayRecordDataSource(str(data.own("grain") / f"{name}.arrayrecord")))
        .shuffle(seed=number)
        .repeat()
        .map(decoded)
        for number, name in enumerate(NAMES)
    ]
    mixed = grain.MapDataset.mix(parts, weights=WEIGHTS).batch(BATCH, drop_remainder=True)
    for tokens, label in mixed.to_iter_dataset():
        yield torch.from_numpy(tokens), torch.from_numpy(label), None


OURS = ("treering", "treering.mixing.loader", "treering.store.table")
LANCEDB = ("lancedb", "lancedb.permutation", "lancedb.streaming", "lance")

CONTENDERS = (
    Contender("gather", "numpy memmap gather (the limit)", "reference", gather, "by hand",
              packages=("numpy",), prepare=write_arrays, shared="arrays", stored=False),
    Contender("scan", "Lance sequential scan", "reference", scan, "–",
              modules=LANCEDB, packages=("pylance",), prepare=write_lancedb, shared="lancedb"),
    Contender("chunks", "64-row chunks, 64 batches at once, by hand over Lance", "reference", chunks_by_hand, "by hand",
              modules=LANCEDB, packages=("pylance",), prepare=write_lancedb, shared="lancedb"),
    Contender("treering", "treering, cold", "treering", ours, "exact", modules=OURS, packages=("treering",)),
    Contender("treering-full", "treering, cold, full shuffle (chunk_rows=1)", "treering",
              lambda data: ours(data, chunk_rows=1), "exact", modules=OURS, packages=("treering",)),
    Contender("treering-warm", "treering, warm cache, full shuffle", "treering",
              lambda data: ours(data, warm=True, chunk_rows=1), "exact",
              modules=OURS, packages=("treering",), prepare=warm_up, shared="cached"),
    Contender("treering-text", "treering, cold, with text", "treering",
              lambda data: ours(data, text=True), "exact", modules=OURS, packages=("treering",), text=True),
    Contender("treering-text-warm", "treering, warm cache, full shuffle, with text", "treering",
              lambda data: ours(data, warm=True, text=True, chunk_rows=1), "exact",
              modules=OURS, packages=("treering",), prepare=lambda data: warm_up(data, text=True), shared="cached-text",
              text=True),
    Contender("torchdata", "torchdata StatefulDataLoader over numpy memmaps", "peer", torchdata, "in expectation",
              modules=("torchdata.stateful_dataloader",), packages=("torchdata",),
              prepare=write_arrays, shared="arrays", stored=False),
    Contender("litdata", "litdata Combined, records", "peer", litdata, "in expectation",
              modules=("litdata",), packages=("litdata",), prepare=write_litdata),
    Contender("litdata-tokens", "litdata Combined, TokensLoader, the label as the 129th token", "peer",
              lambda data: litdata(data, blocks=True), "in expectation",
              modules=("litdata",), packages=("litdata",), prepare=lambda data: write_litdata(data, blocks=True)),
    Contender("hf", "HF datasets map + interleave, batched, torch format", "peer", hf, "in expectation",
              modules=("datasets",), packages=("datasets",), prepare=write_hf, shared="hf"),
    Contender("hf-arrow", "HF datasets map + interleave, batched, Arrow format, tensors by hand", "peer",
              lambda data: hf(data, arrow=True), "in expectation",
              modules=("datasets",), packages=("datasets",), prepare=write_hf, shared="hf"),
    Contender("hf-text", "HF datasets, torch format, with text", "peer",
              lambda data: hf(data, text=True), "in expectation",
              modules=("datasets",), packages=("datasets",), prepare=write_hf, shared="hf", text=True),
    Contender("hf-text-arrow", "HF datasets, Arrow format, tensors by hand, with text", "peer",
              lambda data: hf(data, text=True, arrow=True), "in expectation",
              modules=("datasets",), packages=("datasets",), prepare=write_hf, shared="hf", text=True),
    Contender("permutation", "LanceDB Permutation, one per source", "peer", permutation, "by hand",
              modules=LANCEDB, packages=("lancedb",), prepare=write_lancedb, shared="lancedb"),
    Contender("permutation-clumps", "LanceDB Permutation, clumps of 32", "peer",
              lambda data: permutation(data, clump_size=32), "by hand",
              modules=LANCEDB, packages=("lancedb",), prepare=write_lancedb, shared="lancedb"),
    Contender("streaming", "LanceDB StreamingDataset, one per source", "peer", lancedb_streaming, "by hand",
              modules=LANCEDB, packages=("lancedb",), prepare=write_lancedb, shared="lancedb"),
    Contender("streaming-clumps", "LanceDB StreamingDataset, clumps of 32", "peer",
              lambda data: lancedb_streaming(data, clump_size=32), "by hand",
              modules=LANCEDB, packages=("lancedb",), prepare=write_lancedb, shared="lancedb"),
    Contender("deeplake", "Deep Lake column gather", "peer", deeplake_gather, "by hand",
              modules=("deeplake",), packages=("deeplake",), prepare=write_deeplake, shared="deeplake"),
    Contender("deeplake-pytorch", "Deep Lake ds.pytorch()", "peer", deeplake_pytorch, "by hand",
              modules=("deeplake",), packages=("deeplake",), prepare=write_deeplake, shared="deeplake"),
    Contender("mosaic", "MosaicML Streaming", "peer", mosaic, "stratified",
              before=stand_in_for_torchvision, modules=("streaming",), packages=("mosaicml-streaming",), prepare=write_mosaic),
    Contender("webdataset", "webdataset RandomMix", "peer", webdataset, "in expectation",
              modules=("webdataset",), packages=("webdataset",), prepare=write_webdataset),
    Contender("grain", "Grain MapDataset.mix", "peer", grain, "±1",
              modules=("grain", "array_record.python.array_record_module"), packages=("grain",), prepare=write_grain),
)  # fmt: skip
