"""A report with something in every section, made up: no store, no model."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np

from treering.evaluation import Budget, GatePolicy, ScoreMatrix, check
from treering.evaluation.audit import Audit, AuditCheck, AuditLines
from treering.evaluation.audit import Finding as AuditFinding
from treering.evaluation.budget import project
from treering.evaluation.diagnosis import Diagnosis, DomainFacts, Finding, Growth, ProbedSlice, Projection
from treering.evaluation.drift import ColumnDrift
from treering.evaluation.due import NewData, RoundPolicy, Unseen
from treering.report.answers import answers
from treering.report.gather import (
    AdapterFacts,
    BufferFacts,
    Lines,
    MixFacts,
    NamedMatrix,
    ReportData,
    SnapshotFacts,
    curve_of,
)
from treering.rounds.documents import RoundResult
from treering.rounds.status import Status

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DOMAINS = ["banking", "travel", "dining", "work", "home", "auto", "utility", "credit", "kitchen", "small talk"]


def matrix_of(rounds: int, *, loss: float, corpus: str = "support") -> ScoreMatrix:
    """A slice a round, each losing `loss` a round since it was learnt, and a little more the older it is."""
    values = np.full((rounds, rounds), math.nan)
    for j in range(rounds):
        learnt = 0.95 - 0.01 * (j * 7 % 5)
        for i in range(j, rounds):
            values[i, j] = max(0.02, learnt - loss * (i - j) * (1 + 0.3 * (j * 3 % 4)))
    return ScoreMatrix(
        tuple(f"{corpus}:{i + 1}" for i in range(rounds)), tuple(f"{corpus}@v{j + 1}" for j in range(rounds)), values
    )


def report_data(*, rounds: int = 7, loss: float = 0.002, noise: str = "") -> ReportData:
    """`noise` is put into every text that comes from outside."""
    mix = matrix_of(rounds, loss=loss)
    new_only = matrix_of(rounds, loss=0.13, corpus="support")
    made = [f"support:{n + 1}" for n in range(rounds)]
    adapters = [
        AdapterFacts(
            ref=ref,
            status="production" if n == rounds - 1 else "retired",
            parent=made[n - 1] if n else None,
            strategy=f"replay{noise}",
            base=f"minilm{noise}",
            run=f"support/{n + 1}",
            trained_on=[f"support@v{k + 1}" for k in range(max(0, n - 20), n + 1)],
            learnt_live=False,
            passed=True,
            reasons=[],
            digest="ab" * 32,
            created_at=NOON + timedelta(days=7 * n),
        )
        for n, ref in enumerate(made)
    ]
    refused = adapters[-1].model_copy(
        update={"ref": f"support:{rounds + 1}", "status": "refused", "parent": made[-1], "passed": False,
                "trained_on": [f"support@v{rounds}"], "reasons": [f"support@v1 fell by 12.3 points{noise}"]}
    )  # fmt: skip
    last = mix.row(made[-1])
    budget = Budget(
        texts=200, passes=1, p50_ms=7.9, p99_ms=9.6, memory_gb=0.71, base_parameters=22_700_000, base_gb=0.091,
        adapter_mb=0.8, threads=1, machine="x86_64, 2 CPUs, Linux", projected=project(9.6, 22_700_000, 800_000, 384),
    )  # fmt: skip
    verdict = check(
        last,
        {name: score + 0.004 for name, score in list(last.items())[:-1]},
        GatePolicy(min_bwt=-0.03, min_average=0.85),
        bwt=mix.bwt,
        budget=budget,
        candidate=made[-1],
        baseline=made[-2] if rounds > 1 else None,
    )
    diagnosis = Diagnosis(
        adapter=made[-1],
        metric="macro_f1",
        findings=[
            Finding(check="severe-forgetting", mode=1, title="Forgetting", unit="points", figure=mix.bwt if rounds > 1 else None,
                    line=-0.05, ok=mix.bwt > -0.05 if rounds > 1 else None, says=f"BWT is within its line{noise}"),
            Finding(check="head-tail-gap", mode=3, title="Head and tail", unit="points", figure=0.062, line=0.05, ok=False,
                    says=f"Frequent domains score 6.2 points more than rare ones{noise}.",
                    remedy=f"treering select support@v1..v3 --rows 500 --strategy importance{noise}"),
            Finding(check="router-accuracy", title="Router", unit="share", figure=0.971, line=0.96, ok=True,
                    says="97.1 % of held-out requests go to the right domain."),
            Finding(check="multi-intent-gap", mode=5, title="Several intents at once", unit="points", figure=None, line=0.1,
                    ok=None, says="nobody has labelled a sample yet", remedy="treering label support --sample 50"),
        ],
        domains=[
            DomainFacts(domain=f"{name}{noise}", train_rows=1500 - 140 * n, live_rows=300 - 29 * n, heldout_rows=450 - 40 * n,
                        buffer_rows=50, group="head" if n < 3 else "tail" if n > 6 else "middle", score=0.95 - 0.011 * n)
            for n, name in enumerate(DOMAINS)
        ],
        probed=[
            ProbedSlice(slice="support@v1", learned=0.95, final=0.93, probe=0.945, drop=0.02, recovered=0.015, lost=0.005,
                        cause="alignment drift"),
            ProbedSlice(slice="support@v3", learned=0.94, final=0.91, probe=0.92, drop=0.03, recovered=0.01, lost=0.02,
                        cause="knowledge loss"),
        ],
        spurious_share=0.5,
        growth=Growth(parameters=81_000, bytes=324_000, per_domain=64, per_class=385, order="O(1)", projected=[
            Projection(domains=50, parameters=380_000, bytes=1_520_000),
            Projection(domains=500, parameters=3_400_000, bytes=13_600_000)]),
        created_at=NOON,
    )  # fmt: skip
    data = ReportData(
        corpus="support",
        store=f"/data/store{noise}",
        version="0.1.0",
        created_at=NOON,
        adapter=adapters[-1],
        production=made[-1],
        adapters=[*adapters, refused],
        snapshots=[
            SnapshotFacts(
                ref=f"support@v{n + 1}",
                number=n + 1,
                rows=1_000 + 371 * (n % 4),
                training=900,
                message=f"{DOMAINS[n % 10]}{noise}",
                edition=2 if n == 2 else 1,
                pruned=n == 1,
                learned_by=[one.ref for one in adapters if f"support@v{n + 1}" in one.trained_on],
                created_at=NOON + timedelta(days=7 * n),
            )
            for n in range(rounds)
        ],
        matrices=[
            NamedMatrix(name=f"{made[-1]}, production (replay){noise}", matrix=mix.to_model()),
            NamedMatrix(name=f"{refused.ref}, refused (naive){noise}", matrix=new_only.to_model()),
        ],
        curve=curve_of(mix),
        lines=Lines(min_average=0.85, min_bwt=-0.03, tolerance=0.02),
        verdict=verdict,
        diagnosis=diagnosis,
        mix=[
            MixFacts(ref=f"support@v1..v{rounds - 1}", kind="replay", planned=0.3, served=0.301, rows=3_010),
            MixFacts(ref=f"support@v{rounds}", kind="new", planned=0.6, served=0.599, rows=5_990),
            MixFacts(ref=f"general@v1{noise}", kind="general", planned=0.1, served=0.1, rows=1_000),
        ],
        buffers=[
            BufferFacts(selection="support/replay", strategy="reservoir", domain=f"{name}{noise}", available=1500 - 140 * n, taken=90 - 8 * n)
            for n, name in enumerate(DOMAINS)
        ],
        status=Status(
            corpus="support", record_type="labelled", live_rows=412, live_fragments=1, sealed_rows=9_000, snapshots=rounds,
            newest=f"support@v{rounds}", newest_at=NOON, quarantined=3, production=made[-1], production_at=NOON,
            production_days=3.0, candidate=None,
            new=NewData(rows=412, training_rows=371, first_ts=NOON, last_ts=NOON, oldest_days=2.0,
                        unseen=[Unseen(column="label", value=f"eSIM{noise}", rows=31)],
                        drift=[ColumnDrift(column=name, what=what, measure=measure, score=score, line=line, chance=False,
                                           drifted=score >= line, telling=[f"esim{noise}"])
                               for name, what, measure, score, line in (
                                   ("text", "words", "auc", 0.71, 0.55), ("label", "values", "js_distance", 0.24, 0.1),
                                   ("domain", "values", "js_distance", 0.06, 0.1), ("text", "length", "psi", 0.02, 0.1))]),
            due=True, reasons=[f"support:7 has never seen label eSIM{noise}"], policy=RoundPolicy(), uri="/data/store",
        ),
        audit=Audit(
            ref=f"support@v{rounds}", rows=1_000, training_rows=900, heldout_rows=100, subtypes=30, by=["domain", "label"],
            passed=False,
            checks=[AuditCheck(check="leaks", says="no held-out record nearly equals a training record", findings=0),
                    AuditCheck(check="small-subtypes", says="2 of 30 subtypes have 6 training records or fewer", findings=2),
                    AuditCheck(check="templates", says="", findings=0, skipped="the extra isn't installed")],
            findings=[AuditFinding(check="small-subtypes", where=f"banking, chargeback{noise}", figure=4, line=6,
                                   says="4 training records", remedy="capture more of it")],
            leaks=[], origins=[], lines=AuditLines(),
        ),
        rounds=[
            RoundResult(corpus="support", number=n + 1, outcome="promoted", reasons=[], adapter=ref, share=0.3,
                        average=curve.average, bwt=curve.bwt)
            for n, (ref, curve) in enumerate(zip(made, curve_of(mix), strict=True))
        ] + [RoundResult(corpus="support", number=rounds + 1, outcome="refused", reasons=[], adapter=refused.ref, share=0.3,
                         why=[f"support@v1 fell by 12.3 points{noise}"])],
        answers=[],
        missing=[f"nothing{noise}"] if noise else [],
    )  # fmt: skip
    return data.model_copy(update={"answers": answers(data)})
