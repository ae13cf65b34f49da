"""What does it take to serve an adapter? Latency of one text at a time, threads, memory as domains grow, and a swap.

    python benchmarks/serving.py --json

Each line is a process of its own: it loads the base, builds an adapter of that kind over so many domains and classes (with
random weights: neither latency nor memory depends on what they are), and answers texts one by one. Memory is resident
memory of the process after the base alone, and what the adapter added to it; the bytes of its tensors stand beside it,
because pages are coarse. Beyond 10 domains only gate vectors, head rows and counts may grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

TEXTS = (
    "what is my balance",
    "please move two hundred dollars from checking to savings",
    "how long will it take until the parcel that i ordered on monday arrives at my place",
    "cancel it",
)


def main(arguments: list[str] | None = None) -> None:
    """Measure each line in a process, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--domains", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--classes", type=int, default=15, help="of each domain")
    parser.add_argument("--kinds", nargs="+", default=["gated", "lora"], choices=["gated", "lora", "linear"])
    parser.add_argument("--layers", type=int, default=2, help="that lora adapts")
    parser.add_argument("--texts", type=int, default=300, help="answered one by one")
    parser.add_argument("--threads", type=int, default=4, help="that ask at once, in the lines of threads")
    parser.add_argument("--adapters", type=int, default=4, help="over one base, in the line of swaps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options, **json.loads(options.one))))
        return
    results = [_apart(arguments, kind=kind, domains=domains) for kind in options.kinds for domains in options.domains]
    found = {"benchmark": "serving", "base": options.base, "results": results, "swap": _swap(options)}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    heads = ("kind", "domains", "p50 ms", "p99 ms", "texts/s, threads", "base MB", "adapter MB", "tensors MB")
    print("  ".join(f"{head:>16}" for head in heads))
    for row in results:
        cells = (
            row["kind"], row["domains"], f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['threads_per_s']:.0f}",
            f"{row['base_mb']:.0f}", f"{row['adapter_mb']:.1f}", f"{row['tensors_mb']:.2f}",
        )  # fmt: skip
        print("  ".join(f"{cell:>16}" for cell in cells))
    swap = found["swap"]
    print(
        f"a swap: {swap['refresh_ms']:.0f} ms beside {swap['answers']:,} answers, the slowest {swap['slowest_ms']:.0f} ms; "
        f"each further adapter over the base takes {swap['mb_per_adapter']:.2f} MB, its tensors {swap['tensors_mb']:.2f} MB"
    )


def _apart(arguments: list[str] | None, **one: Any) -> dict[str, Any]:
    given = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--json"]
    command = [sys.executable, __file__, *given, "--one", json.dumps(one)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def adapter_of(base: Any, kind: str, domains: int, classes: int, layers: int, seed: int = 0) -> Any:
    """An adapter with random weights."""
    import torch

    from treering.training import Adapter, TrainConfig
    from treering.training.nets import header_for, make_net

    names = [f"domain {n}" for n in range(domains)]
    labels = [f"{name}, class {k}" for name in names for k in range(classes)]
    config = TrainConfig(kind=kind, adapt_layers=layers if kind == "lora" else 0)
    header = header_for(config, base, labels, names)
    random = torch.Generator().manual_seed(seed)
    tensors = make_net(header, base, generator=random).tensors()
    tensors["head.weight"] = torch.randn(tensors["head.weight"].shape, generator=random)
    tensors["counts"] = torch.eye(domains, dtype=torch.int64).repeat_interleave(classes, 0)
    return Adapter(header, tensors, base=base)


def tensor_bytes(adapter: Any) -> int:
    """Bytes of everything that is saved of an adapter."""
    return sum(value.numel() * value.element_size() for value in adapter.tensors.values())


def measure(options: Any, *, kind: str, domains: int) -> dict[str, Any]:
    """One line, in this process."""
    from treering.rounds.budget import resident_bytes
    from treering.training import Base

    base = Base.load(options.base)
    base.encode(list(TEXTS))  # the first pass takes memory that it keeps
    gc.collect()
    before = resident_bytes()
    adapter = adapter_of(base, kind, domains, options.classes, options.layers)
    for text in TEXTS * 5:
        adapter.predict([text])
    gc.collect()
    after = resident_bytes()
    taken = []
    for n in range(options.texts):
        started = time.perf_counter()
        adapter.predict([f"{TEXTS[n % len(TEXTS)]} {n}"])
        taken.append(1e3 * (time.perf_counter() - started))
    return {
        "kind": kind,
        "domains": domains,
        "classes": domains * options.classes,
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "threads_per_s": _threads(adapter, options.threads, options.texts),
        "base_mb": before / 1e6,
        "adapter_mb": (after - before) / 1e6,
        "tensors_mb": tensor_bytes(adapter) / 1e6,
    }


def _threads(adapter: Any, threads: int, texts: int) -> float:
    """Texts a second that so many threads are answered."""

    def ask(number: int) -> None:
        for n in range(texts // threads):
            adapter.predict([f"{TEXTS[n % len(TEXTS)]} {number} {n}"])

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return (texts // threads) * threads / (time.perf_counter() - started)


def _swap(options: Any) -> dict[str, Any]:
    """What a swap in a store costs those who ask meanwhile, and what further adapters over one base take."""
    import treering
    from treering.registry import Registry
    from treering.rounds.budget import resident_bytes
    from treering.training import Base

    base = Base.load(options.base)
    with tempfile.TemporaryDirectory() as scratch:
        store = treering.open(scratch)
        with store.create("support", "labelled", heldout=0.0).capture() as live:
            live.add({"text": "hi", "label": "x"})
        made = [
            adapter_of(base, options.kinds[0], options.domains[0], options.classes, options.layers, seed)
            for seed in range(2)
        ]
        for one in made:
            _add(Registry(store, "support"), one, options.base)
        model = treering.load_adapter(store, "support:candidate")  # the newest: of two, the second
        model.predict(list(TEXTS))
        taken: list[float] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                started = time.perf_counter()
                model.predict([TEXTS[len(taken) % len(TEXTS)]])
                taken.append(1e3 * (time.perf_counter() - started))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        _add(Registry(store, "support"), made[0], options.base)
        started = time.perf_counter()
        swapped = model.refresh()
        refreshed = 1e3 * (time.perf_counter() - started)
        time.sleep(0.5)
        stop.set()
        asking.join()
        assert swapped
    gc.collect()
    before = resident_bytes()
    more = [
        adapter_of(base, options.kinds[0], options.domains[0], options.classes, options.layers, seed)
        for seed in range(options.adapters)
    ]
    for one in more:
        one.predict(list(TEXTS))
    gc.collect()
    return {
        "refresh_ms": refreshed,
        "answers": len(taken),
        "slowest_ms": max(taken),
        "mb_per_adapter": (resident_bytes() - before) / 1e6 / len(more),
        "tensors_mb": tensor_bytes(more[0]) / 1e6,
    }


def _add(registry: Any, adapter: Any, name: str) -> None:
    from treering.training import BaseCard, ModelCard, TrainConfig

    base = adapter.base
    card = ModelCard(
        base=BaseCard(
            name=name,
            digest=base.digest,
            precision=base.precision,
            max_tokens=base.max_tokens,
            width=base.width,
            layers=base.layers,
        ),
        config=TrainConfig(base=name),
        classes=adapter.header.classes,
        domains=adapter.header.domains,
        weights_digest=adapter.digest,
    )
    registry.add(weights=adapter.to_bytes(), card=card, base=name, base_digest=base.digest)


if __name__ == "__main__":
    main()
