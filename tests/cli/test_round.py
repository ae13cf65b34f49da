"""`treering round`, `report` and what `show` says of an adapter beside its parent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rounds.test_round import TRAIN
from tests.training.tiny import make_base, records

from .conftest import Run, jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


def write_config(where: Path, base: str, gate: str = "max_p99_ms = false") -> None:
    train = "\n".join(f"{name} = {value!r}" for name, value in TRAIN.items())
    (where / "round.toml").write_text(
        f'corpus = "support"\n[due]\nfewest = 1\nmin_new = 10\n[train]\nbase = "{base}"\n{train}\n[gate]\n{gate}\n'
    )


def feed(run: Run, where: Path, topic: str) -> None:
    made = [
        {**record, "id": f"{topic}-{n}", "split": "train" if n % 5 else "heldout"}
        for n, record in enumerate(records(topic))
    ]
    assert run("capture", "support", jsonl(where / "records.jsonl", made)).code == 0


def test_one_command_a_week(support: Run, where: Path, base: str) -> None:
    write_config(where, base)
    idle = support("round")
    assert (idle.code, "nothing to do" in idle.out) == (0, True)
    feed(support, where, "billing")
    dry = support("round", "--dry-run", "--json")
    assert (dry.code, dry.data["outcome"], dry.data["sources"][0]["ref"]) == (0, "planned", "support@live")
    first = support("round", "round.toml", "--json")
    assert (first.code, first.data["outcome"], first.data["production"]) == (0, "promoted", "support:1")
    assert "snapshot: sealed support@v1" in first.err

    feed(support, where, "shipping")
    write_config(where, base, "max_p99_ms = 1e-6")
    refused = support("round")
    assert refused.code == 3
    assert refused.out.startswith("round 2 of support: the gate refused support:2")
    assert "p99 latency" in refused.err
    assert "production is support:1, as before" in refused.err

    shown = support("show", "support:2")
    assert "against its parent, macro_f1 in points of 100:" in shown.out
    changes = support("show", "support:2", "--json").data["against_parent"]
    assert [change["slice"] for change in changes if "domain=" not in change["slice"]] == ["support@v1", "support@v2"]
    assert changes[0]["parent"] is not None

    gate = support("gate", "support:2")
    assert "projected, not measured, over a 7B base" in gate.out
    assert "≤ 100 ms" in gate.out

    report = support("report", "--quick")
    assert report.code == 0
    page = where / "support-report.html"
    assert report.out.strip() == str(page)
    assert "<h1>support:1 has one round behind it</h1>" in page.read_text()
    page.unlink()
    data = support("report", "support", "--adapter", "support:2", "--json").data
    assert (data["adapter"]["ref"], data["production"]) == ("support:2", "support:1")
    assert [one["outcome"] for one in data["rounds"]] == ["promoted", "refused"]
    assert len(data["answers"]) == 5
    assert not page.exists()
    support("report", "-o", "out/r.html", "--quick", "--json")
    assert (where / "out" / "r.html").exists()
