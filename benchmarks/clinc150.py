"""How much does each strategy forget? CLINC150, its ten domains one after another, through the whole of treering.

    python benchmarks/clinc150.py --data data_full.json --strategies naive,replay,joint --orderings 3 --json

Each ordering is a corpus: a domain's sentences are captured, sealed as a snapshot, trained on by every strategy from its
own last adapter, and scored on every slice. Class-incremental: one growing head over 150 intents, no domain at test
time. F1 is macro-F1 over all 4,500 test sentences after the tenth round, BWT that of the score matrix; both in points of
100, mean and standard deviation over orderings. Joint training gets as many updates as the ten rounds together.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from typing import Any

import numpy as np

import treering
from treering.demo.clinc150_domains import CLINC150_DOMAINS
from treering.demo.streams import Stream, clinc150, read_json
from treering.evaluation import macro_f1
from treering.rounds import Run, train


def ordering(domains: list[str], number: int) -> list[str]:
    """Ordering 0 is the file's own; the others are shuffled by their number."""
    order = list(domains)
    if number:
        random.Random(number).shuffle(order)
    return order


def capture(store: treering.Store, name: str, stream: Stream) -> list[str]:
    """One snapshot a round; their refs."""
    corpus = store.create(name, "labelled", heldout=stream.heldout)
    refs = []
    for round_ in stream.rounds:
        with corpus.capture() as live:
            live.extend(list(round_.records))
        snapshot = corpus.snapshot(message=round_.domain)
        assert snapshot is not None
        refs.append(snapshot.ref)
    return refs


def run_strategy(
    store: treering.Store, name: str, refs: list[str], config: treering.TrainConfig, replay: float, seed: int
) -> Run:
    """The last run of one strategy over all rounds."""
    if config.strategy == "joint":
        mix = store.mix(f"{name}@v1..v{len(refs)}", seed=seed)
        return train(store, mix, config.changed(steps=config.steps * len(refs)))
    run: Run | None = None
    for n, ref in enumerate(refs, 1):
        past = [] if n == 1 else [f"{name}@v1..v{n - 1}" if n > 2 else f"{name}@v1"]
        weights = [replay, 1 - replay] if past else [1.0]
        mix = store.mix(*past, ref, weights=weights, seed=seed)
        run = train(store, mix, config, parent=None if run is None else run.adapter.ref)
    assert run is not None
    return run


def measure(store: treering.Store, name: str, run: Run) -> tuple[float, float | None]:
    """Macro-F1 over all held-out sentences, and BWT; points of 100."""
    rounds = len(store.corpus(name).snapshots())
    table = store.load(f"{name}@v1..v{rounds}").heldout().to_table(["text", "label"])
    model = treering.load_adapter(store, run.adapter.ref)
    f1 = macro_f1(table.column("label").to_pylist(), model.predict(table.column("text").to_pylist()))
    bwt = None
    if run.config.strategy != "joint":
        bwt = 100 * treering.score_matrix(store, name, adapter=run.adapter.ref).bwt
    return 100 * f1, bwt


def main(arguments: list[str] | None = None) -> None:
    """Run the strategies and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", required=True, help="data_full.json of CLINC150: a path or URL")
    parser.add_argument("--domains", help="JSON of intents by domain; the standard ten when left out")
    parser.add_argument("--strategies", default="naive,replay,joint")
    parser.add_argument("--orderings", type=int, default=3)
    parser.add_argument("--replay", type=float, default=0.2, help="share of replay in each batch")
    parser.add_argument("--config", default="{}", help="JSON of TrainConfig fields to change")
    parser.add_argument("--heldout", default="test", choices=["test", "val"], help="val: to choose hyperparameters on")
    parser.add_argument("--limit", type=int, help="at most so many training sentences an intent")
    parser.add_argument("--rounds", type=int, help="only the first so many domains")
    parser.add_argument("--store", help="where to keep the store; a temporary directory when left out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    domains = read_json(options.domains) if options.domains else {k: list(v) for k, v in CLINC150_DOMAINS.items()}
    strategies = options.strategies.split(",")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in strategies}
    with tempfile.TemporaryDirectory() as scratch:
        store = treering.open(options.store or scratch)
        for number in range(options.orderings):
            order = ordering(list(domains), number)[: options.rounds]
            stream = clinc150(
                options.data,
                domains={name: domains[name] for name in order},
                order=order,
                heldout=options.heldout,
                limit=options.limit,
            )
            corpus = f"ordering_{number}"
            started = time.perf_counter()
            refs = capture(store, corpus, stream)
            print(f"{corpus}: captured and sealed in {time.perf_counter() - started:.1f} s", file=sys.stderr)
            for strategy in strategies:
                config = treering.TrainConfig(**{"strategy": strategy, "seed": number, **json.loads(options.config)})
                started = time.perf_counter()
                run = run_strategy(store, corpus, refs, config, options.replay, seed=number)
                seconds = time.perf_counter() - started
                f1, bwt = measure(store, corpus, run)
                stats = run.adapter.stats
                one = {"f1": f1, "bwt": bwt, "seconds": seconds, "parameters": stats["trainable_parameters"]}
                found[strategy].append(one)
                bwt_text = "–" if bwt is None else f"{bwt:+.2f}"
                print(f"  {strategy}: F1 {f1:.2f}, BWT {bwt_text}, {seconds:.1f} s", file=sys.stderr)

    results = [summary(name, runs) for name, runs in found.items()]
    if options.json:
        print(json.dumps({"benchmark": "clinc150", "replay": options.replay, "results": results}, indent=2))
        return
    print(f"{'strategy':<12}{'F1':>14}{'BWT':>15}{'s':>8}{'parameters':>12}")
    for r in results:
        bwt_text = "–" if r["bwt"] is None else f"{r['bwt']:+.1f} ± {r['bwt_sd']:.1f}"
        f1_text = f"{r['f1']:.1f} ± {r['f1_sd']:.1f}"
        print(f"{r['strategy']:<12}{f1_text:>14}{bwt_text:>15}{r['seconds']:>8.1f}{r['parameters']:>12,}")


def summary(strategy: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over orderings; points of 100."""
    f1 = [run["f1"] for run in runs]
    bwt = [run["bwt"] for run in runs if run["bwt"] is not None]
    return {
        "strategy": strategy,
        "f1": float(np.mean(f1)),
        "f1_sd": float(np.std(f1)),
        "bwt": float(np.mean(bwt)) if bwt else None,
        "bwt_sd": float(np.std(bwt)) if bwt else None,
        "seconds": float(np.mean([run["seconds"] for run in runs])),
        "parameters": runs[0]["parameters"],
        "orderings": len(runs),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
