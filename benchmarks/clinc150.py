"""How much does each strategy forget? CLINC150, its ten domains one after another, through the whole of treering.

    python benchmarks/clinc150.py --data data_full.json --strategies naive,replay,slda,joint --orderings 5 --json

Each ordering is a corpus: a domain's sentences are captured, sealed as a snapshot, trained on by every strategy from its
own last adapter, and scored on every slice. Class-incremental: one growing head over 150 intents, no domain at test
time. F1 is macro-F1 over all held-out sentences after the last round, BWT that of the score matrix; both in points of
100, mean and standard deviation over orderings. Joint training gets as many updates as all rounds together.

A strategy may be varied: `NAME:FIELD=VALUE+FIELD=VALUE`, with fields of TrainConfig, `replay=SHARE` for its share of each
batch, and `store` for replay from all that was ever sealed instead of a bounded buffer (`lora-replay:store`).
`--ablate GROUP` adds a group of such variants (`--ablate list` names them).

The budget is what is kept of earlier rounds: records that replay may draw from, and bytes of their text and labels plus
what the strategy keeps in its weights. `--out FILE` appends each run as it ends, and doesn't repeat those that are there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import treering
from treering.demo.clinc150_domains import CLINC150_DOMAINS
from treering.demo.streams import Stream, clinc150, dialogues, read_json
from treering.errors import UsageError
from treering.registry import Registry
from treering.rounds import Run, train
from treering.training import Adapter, strategy

HEAD = 0.3  # the share of domains, by how many records they have, that is the head; as many are the tail
MOST, FEWEST = 100, 5  # training sentences an intent in the largest and the smallest domain of the long-tailed variant

ABLATIONS = {
    "streams": [f"dual-replay:general_share={share}" for share in (0.0, 0.15, 0.3, 0.5)],
    "anchor": [f"dual-replay:strength={strength}" for strength in (0.0, 1.0, 10.0)],
    "importance": [f"dual-replay:replay_by={by}" for by in ("importance", "reservoir", "balanced")],
    "spread": [f"dual-replay:replay_spread={over}" for over in ("label", "")],
    "gates": [f"dual-replay:gates={gates}" for gates in ("soft", "hard", "off")],
    "router": [f"dual-replay:router={router}" for router in ("mlp", "posterior")],
    "prior": [f"dual-replay:prior_correction={on}" for on in ("false", "true")],
    "balance": [f"lora-replay:replay_by={by}" for by in ("reservoir", "balanced")],
    "depth": [f"lora-replay:adapt_layers={layers}" for layers in (1, 2, 3)],
    "steps": [f"lora-replay:steps={steps}" for steps in (20, 40, 80)],
    "placement": [f"lora-replay:targets={targets}" for targets in ("attention", "mlp", "all")],
    "inside": [f"dual-replay:adapt_layers={layers}" for layers in (0, 1, 2)],
    "replay": [f"replay:replay={share}" for share in (0.1, 0.2, 0.3, 0.5)],
    "budget": [*(f"replay:replay_rows={rows}" for rows in (250, 500, 1000, 2500)), "replay:store"],
    "kinds": [f"replay:kind={kind}" for kind in ("gated", "linear")],
}


def parse(spec: str) -> tuple[str, dict[str, Any], float | None]:
    """A strategy as given: its name, fields of its config, and its share of replay if it says one."""
    name, _, rest = spec.partition(":")
    fields: dict[str, Any] = {}
    share = None
    for part in rest.split("+") if rest else []:
        field, equals, value = part.partition("=")
        if field == "store" and not equals:
            fields |= {"replay_rows": 0, "replay_mb": 0.0}
        elif field == "replay" and equals:
            share = float(value)
        elif equals:
            try:
                fields[field] = json.loads(value)
            except ValueError:
                fields[field] = value
        else:
            raise UsageError(f"{spec}: {part!r} is no variant", code="bad-variant", hint="FIELD=VALUE, or store")
    return name, fields, share


def ordering(domains: Sequence[str], number: int) -> list[str]:
    """Ordering 0 is the file's own; the others are shuffled by their number."""
    order = list(domains)
    if number:
        random.Random(number).shuffle(order)
    return order


def groups_of(domains: dict[str, list[str]], size: int) -> dict[str, list[str]]:
    """The intents in the file's order, in groups of `size`: each a domain of its own."""
    intents = [intent for found in domains.values() for intent in found]
    parts = [intents[start : start + size] for start in range(0, len(intents), size)]
    return {f"group_{number:02}": part for number, part in enumerate(parts, 1)}


def long_tailed(stream: Stream, number: int) -> Stream:
    """The same with 100 down to 5 training sentences an intent, by domain; chance says which domain has how many, and which.

    Not the first ones: those of an intent are paraphrases of each other.
    """
    sizes = np.geomspace(MOST, FEWEST, len(stream.rounds)).round().astype(int).tolist()
    chance = random.Random(1000 + number)
    chance.shuffle(sizes)
    rounds = []
    for round_, size in zip(stream.rounds, sizes, strict=True):
        taken: dict[str, int] = {}
        kept = []
        for record in chance.sample(round_.records, len(round_.records)):
            taken[record["label"]] = taken.get(record["label"], 0) + (record["split"] == "train")
            if record["split"] == "heldout" or taken[record["label"]] <= size:
                kept.append(record)
        rounds.append(replace(round_, records=tuple(kept)))
    return replace(stream, rounds=tuple(rounds))


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


def capture_general(store: treering.Store, path: str | None) -> str:
    """The general stream's corpus: a text a line, or the demo's dialogues; its ref. No labels: nobody learns from it."""
    if path is None:
        texts = [record["text"] for round_ in dialogues().rounds for record in round_.records]
    else:
        texts = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    corpus = store.create("general", pa.schema([("text", pa.string()), ("label", pa.string())]), heldout=0.0)
    with corpus.capture() as live:
        live.extend({"id": f"general-{n}", "text": text, "split": "train"} for n, text in enumerate(texts))
    snapshot = corpus.snapshot(message="general texts")
    assert snapshot is not None
    return str(snapshot.ref)


def run_strategy(
    store: treering.Store, name: str, refs: list[str], config: treering.TrainConfig, replay: float, seed: int
) -> list[Run]:
    """The runs of one strategy over all rounds; of one that starts from scratch, its one run."""
    if not strategy(config.strategy).continues:
        mix = store.mix(f"{name}@v1..v{len(refs)}" if len(refs) > 1 else refs[0], seed=seed)
        steps = strategy(config.strategy).settle(config).steps
        return [train(store, mix, config.changed(steps=steps * len(refs)))]
    runs: list[Run] = []
    for n, ref in enumerate(refs, 1):
        past = [] if n == 1 else [f"{name}@v1..v{n - 1}" if n > 2 else f"{name}@v1"]
        weights = [replay, 1 - replay] if past else [1.0]
        mix = store.mix(*past, ref, weights=weights, seed=seed)
        runs.append(train(store, mix, config, parent=runs[-1].adapter.ref if runs else None))
    return runs


def budget(store: treering.Store, run: Run, new: str) -> tuple[int, int]:
    """What was kept of earlier rounds: records that were replayed from, and bytes of them and of the strategy's state."""
    rows = size = 0
    for source in run.lock.sources:
        pin = source.pin
        if not source.units or pin.ref == new:
            continue
        ref = pin.ref if pin.selection is None else f"{pin.corpus}/{pin.selection.name}"
        table = store.load(ref).to_table(["text", "label", "split"])
        kept = [row for row in table.to_pylist() if row["split"] == "train"]
        rows += len(kept)
        size += sum(len(row["text"].encode()) + len((row["label"] or "").encode()) for row in kept)
    return rows, size + int(run.adapter.stats["state_bytes"])


def class_f1(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """F1 of each class that is held out, points of 100."""
    right, wanted, given = (dict.fromkeys((*truth, *said), 0) for _ in range(3))
    for true, found in zip(truth, said, strict=True):
        wanted[true] += 1
        given[found] += 1
        right[true] += true == found
    return {name: 200.0 * right[name] / (wanted[name] + given[name]) for name in set(truth)}


def measure(store: treering.Store, name: str, runs: list[Run], stream: Stream) -> dict[str, Any]:
    """What one strategy came to on all held-out sentences; points of 100, seconds, bytes."""
    last = runs[-1]
    registry = Registry(store, name)
    ref = last.adapter.ref
    adapter = Adapter.load(registry.weights(ref), registry.card(ref), cache_dir=store.cache_dir)
    held = store.load(f"{name}@v1..v{len(stream.rounds)}" if len(stream.rounds) > 1 else f"{name}@v1").heldout()
    table = held.to_table(["text", "label", "domain"])
    texts, truth, domains = (table.column(column).to_pylist() for column in ("text", "label", "domain"))
    scores = class_f1(truth, adapter.predict(texts))
    routed = [adapter.domains[n] for n in adapter.route(texts).argmax(1).tolist()]
    by_size = sorted(stream.rounds, key=lambda r: sum(record["split"] == "train" for record in r.records))
    few = max(1, round(HEAD * len(by_size)))
    of_domain = {domain: {t for t, d in zip(truth, domains, strict=True) if d == domain} for domain in set(domains)}

    def over(rounds: Sequence[Any]) -> float:
        return float(np.mean([scores[label] for round_ in rounds for label in of_domain[round_.domain]]))

    continued = strategy(last.config.strategy).continues
    stats = [run.adapter.stats for run in runs]
    rows, size = budget(store, last, f"{name}@v{len(stream.rounds)}") if continued else (0, 0)
    return {
        "f1": float(np.mean(list(scores.values()))),
        "bwt": 100 * treering.score_matrix(store, name, adapter=ref).bwt if continued and len(runs) > 1 else None,
        "router": 100 * float(np.mean([a == b for a, b in zip(routed, domains, strict=True)])),
        "head_f1": over(by_size[-few:]),
        "tail_f1": over(by_size[:few]),
        "kind": adapter.header.kind,
        "parameters": stats[-1]["trainable_parameters"],
        "budget_rows": rows,
        "budget_bytes": size,
        "seconds_read": sum(one["seconds_encode"] for one in stats),
        "seconds_train": sum(one["seconds_train"] for one in stats),
        "updates": sum(one["steps"] for one in stats),
    }


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", required=True, help="data_full.json of CLINC150: a path or URL")
    parser.add_argument("--domains", help="JSON of intents by domain; the standard ten when left out")
    parser.add_argument("--strategies", default="naive,replay,slda,joint", help="names, each perhaps with a variant")
    parser.add_argument("--ablate", action="append", default=[], help="a group of variants; `list` names them")
    parser.add_argument("--orderings", type=int, default=3)
    parser.add_argument("--first-ordering", type=int, default=0, help="number of the first one")
    parser.add_argument(
        "--rounds-of", type=int, help="rounds of so many intents instead of domains: 10 makes 15 rounds"
    )
    parser.add_argument("--long-tail", action="store_true", help="100 down to 5 sentences an intent, by domain")
    parser.add_argument("--replay", type=float, default=0.2, help="share of replay in each batch")
    parser.add_argument("--config", default="{}", help="JSON of TrainConfig fields to change in every strategy")
    parser.add_argument("--general", help="texts of the general stream, one a line; the demo's dialogues when left out")
    parser.add_argument("--heldout", default="test", choices=["test", "val"], help="val: to choose hyperparameters on")
    parser.add_argument("--limit", type=int, help="at most so many training sentences an intent")
    parser.add_argument("--rounds", type=int, help="only the first so many domains")
    parser.add_argument("--store", help="where to keep the store; a temporary directory when left out")
    parser.add_argument("--cache", help="directory that keeps activations of the base between calls: a warm start")
    parser.add_argument("--out", help="JSON lines: append each run; those that are there aren't run again")
    parser.add_argument("--markdown", action="store_true", help="print the table as RESULTS.md has it")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> None:
    """Run the strategies and print a table or JSON."""
    options = arguments_of(arguments)
    if "list" in options.ablate:
        print("\n".join(f"{name}: {', '.join(specs)}" for name, specs in ABLATIONS.items()))
        return
    specs = [spec for spec in options.strategies.split(",") if spec]
    specs = list(dict.fromkeys(specs + [spec for group in options.ablate for spec in ABLATIONS[group]]))
    domains = read_json(options.domains) if options.domains else {k: list(v) for k, v in CLINC150_DOMAINS.items()}
    if options.rounds_of:
        domains = groups_of(domains, options.rounds_of)
    setting = {
        field: getattr(options, field)
        for field in ("rounds_of", "long_tail", "replay", "config", "heldout", "limit", "rounds")
    }
    done = read_runs(options.out, setting)
    with tempfile.TemporaryDirectory() as scratch:
        store = treering.open(options.store or scratch)
        if options.cache:
            Path(options.cache).mkdir(parents=True, exist_ok=True)
            (Path(store.cache_dir) / "activations").symlink_to(Path(options.cache).resolve(), target_is_directory=True)
        general = ""
        for number in range(options.first_ordering, options.first_ordering + options.orderings):
            todo = [spec for spec in specs if (spec, number) not in done]
            if not todo:
                continue
            order = ordering(list(domains), number)[: options.rounds]
            chosen = {name: domains[name] for name in order}
            stream = clinc150(options.data, domains=chosen, order=order, heldout=options.heldout, limit=options.limit)
            stream = long_tailed(stream, number) if options.long_tail else stream
            corpus = f"ordering_{number}"
            started = time.perf_counter()
            refs = capture(store, corpus, stream)
            print(f"{corpus}: captured and sealed in {time.perf_counter() - started:.1f} s", file=sys.stderr)
            for spec in todo:
                name, fields, share = parse(spec)
                fields = {"strategy": name, "seed": number, **json.loads(options.config), **fields}
                if name == "dual-replay" and "general" not in fields and fields.get("general_share") != 0.0:
                    general = general or capture_general(store, options.general)
                    fields["general"] = general
                config = treering.TrainConfig(**fields)
                started = time.perf_counter()
                runs = run_strategy(store, corpus, refs, config, options.replay if share is None else share, number)
                one = {"seconds": time.perf_counter() - started, **measure(store, corpus, runs, stream)}
                done[spec, number] = one
                keep(options.out, {"strategy": spec, "ordering": number, "setting": setting, **one})
                bwt_text = "–" if one["bwt"] is None else f"{one['bwt']:+.2f}"
                print(
                    f"  {spec}: F1 {one['f1']:.2f}, BWT {bwt_text}, {one['seconds']:.1f} s", file=sys.stderr, flush=True
                )

    numbers = range(options.first_ordering, options.first_ordering + options.orderings)
    results = [summary(spec, [done[spec, number] for number in numbers]) for spec in specs]
    if options.json:
        print(json.dumps({"benchmark": "clinc150", **setting, "results": results}, indent=2))
        return
    if options.markdown:
        print(markdown(results))
        return
    print(
        f"{'strategy':<34}{'F1':>13}{'BWT':>14}{'head':>7}{'tail':>7}{'router':>8}{'rows':>8}{'bytes':>11}{'s':>8}{'trained':>11}"
    )
    for r in results:
        bwt_text = "–" if r["bwt"] is None else f"{r['bwt']:+.1f} ± {r['bwt_sd']:.1f}"
        f1_text = f"{r['f1']:.1f} ± {r['f1_sd']:.1f}"
        print(
            f"{r['strategy']:<34}{f1_text:>13}{bwt_text:>14}{r['head_f1']:>7.1f}{r['tail_f1']:>7.1f}{r['router']:>8.1f}"
            f"{r['budget_rows']:>8,}{r['budget_bytes']:>11,}{r['seconds']:>8.1f}{r['parameters']:>11,}"
        )


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of RESULTS.md."""
    lines = [
        "| strategy | trains | macro-F1 | BWT | budget, rows | budget, kB | s | trained parameters | orderings |",
        "| --- " * 9 + "|",
    ]
    for r in results:
        bwt = "–" if r["bwt"] is None else f"{r['bwt']:+.1f} ± {r['bwt_sd']:.1f}".replace("-", "−")
        facts = (
            f"`{r['strategy']}`",
            r["kind"],
            f"{r['f1']:.1f} ± {r['f1_sd']:.1f}",
            bwt,
            f"{r['budget_rows']:,}",
            f"{r['budget_bytes'] / 1000:,.0f}",
            f"{r['seconds']:.0f}",
            f"{r['parameters']:,}",
            str(r["orderings"]),
        )
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines)


def read_runs(path: str | None, setting: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs under this setting that an earlier call left: by strategy and ordering."""
    if path is None or not Path(path).exists():
        return {}
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line]
    known = ("strategy", "ordering", "setting")
    return {
        (line["strategy"], line["ordering"]): {key: value for key, value in line.items() if key not in known}
        for line in lines
        if line["setting"] == setting
    }


def keep(path: str | None, line: dict[str, Any]) -> None:
    """Append one run."""
    if path is not None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def summary(spec: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over orderings; points of 100."""
    bwt = [run["bwt"] for run in runs if run["bwt"] is not None]
    averaged = ("f1", "seconds", "seconds_read", "seconds_train", "router", "head_f1", "tail_f1", "budget_bytes")
    return {
        "strategy": spec,
        **{field: float(np.mean([run[field] for run in runs])) for field in averaged},
        "f1_sd": float(np.std([run["f1"] for run in runs])),
        "bwt": float(np.mean(bwt)) if bwt else None,
        "bwt_sd": float(np.std(bwt)) if bwt else None,
        "budget_rows": runs[-1]["budget_rows"],
        "budget_bytes": round(float(np.mean([run["budget_bytes"] for run in runs]))),
        "parameters": runs[-1]["parameters"],
        "kind": runs[-1]["kind"],
        "updates": runs[-1]["updates"],
        "orderings": len(runs),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
