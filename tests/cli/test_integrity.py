"""`treering verify` and `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run, jsonl, labelled


@pytest.fixture
def sealed(support: Run, where: Path) -> Run:
    support("capture", "support", jsonl(where / "records.jsonl", labelled(40)))
    support("snapshot", "live", "--to", "support@v1")
    return support


def data_file(where: Path) -> Path:
    return next((where / ".treering" / "tables").glob("*/data/*.lance"))


def test_verify_says_what_it_verified(sealed: Run) -> None:
    done = sealed("verify", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.data["ok"] is True
    assert [(one["ref"], one["rows"], one["certified_now"]) for one in done.data["checked"]] == [
        ("support@v1", 40, False),
        ("support@live", 0, False),
    ]
    shown = sealed("verify", "support@v1")
    assert shown.code == 0
    assert "support@v1" in shown.out
    assert "support@live" not in shown.out


def test_verify_ends_with_3_and_names_the_file_and_the_records(sealed: Run, where: Path) -> None:
    path = data_file(where)
    data = bytearray(path.read_bytes())
    data[data.index(b"refund number 7")] ^= 1
    path.write_bytes(bytes(data))
    done = sealed("verify", "support@v1", "--json")
    assert done.code == 3
    (finding,) = done.data["checked"][0]["findings"]
    assert finding["file"].endswith(f"data/{path.name}")
    assert finding["records"] == [[0, 40]]
    shown = sealed("verify", "support@v1")
    assert shown.code == 3
    assert path.name in shown.lines[0]
    assert "records 0–39" in " ".join(shown.out.split())


def test_doctor_says_what_needs_action_and_repairs_it(sealed: Run, where: Path) -> None:
    assert sealed("doctor").code == 0
    (where / ".treering" / "spool").chmod(0o777)
    done = sealed("doctor", "--json")
    assert done.code == 3
    assert [(r["code"], r["level"], r["repaired"]) for r in done.data["remarks"]] == [
        ("world-writable", "warning", False)
    ]
    assert done.data["tables"][0]["manifests"] >= 1
    shown = sealed("doctor")
    assert shown.code == 3
    assert "anybody on this machine can change it" in shown.lines[0]
    assert "treering doctor --repair" in shown.lines[1]
    assert sealed("doctor", "--repair").code == 0
    assert sealed("doctor", "--json").data["ok"] is True


def test_a_rolled_back_store_ends_every_command_with_the_one_that_repairs_it(sealed: Run, where: Path) -> None:
    newest = min((where / ".treering" / "tables").glob("*/_versions/*.manifest"))
    newest.unlink()
    for words in (["status", "support"], ["head", "support@live"], ["capture", "support", "records.jsonl"]):
        done = sealed(*words)
        assert done.code == 6
        assert "rolled back" in done.lines[0]
        assert f"treering doctor --repair --store {where / '.treering'}" in done.lines[1]
    assert sealed("doctor").code == 3
    assert sealed("doctor", "--repair").code == 0
    assert sealed("status", "support").code == 0
    assert sealed("verify").code == 0
