from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load_script(name: str) -> ModuleType:
    """A script of `scripts/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


FILES: dict[str, dict[str, Any]] = load_script("generate_schemas").generate()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_schema_file_is_what_the_code_generates(name: str) -> None:
    assert json.loads((ROOT / "schemas" / name).read_text()) == json.loads(json.dumps(FILES[name]))


def test_no_schema_file_is_left_over() -> None:
    assert {path.name for path in (ROOT / "schemas").iterdir()} == set(FILES)


def test_every_record_type_and_document_has_its_files() -> None:
    for name in ("chat", "labelled", "preference", "tokens"):
        assert {f"{name}.v1.schema.json", f"{name}.v1.arrow.json"} <= set(FILES)
    for name in ("snapshot", "certificate", "mix-lock", "model-card"):
        assert f"{name}.v1.schema.json" in FILES


def test_every_guard_of_the_mutations_stands_where_they_say() -> None:
    """A guard that is moved or reworded would no longer be taken out, and nobody would know whether a test notices."""
    lost = [
        mutation.name
        for mutation in load_script("mutate").MUTATIONS
        if (ROOT / "src/treering" / mutation.file).read_text("utf-8").count(mutation.old) != 1
    ]
    assert lost == []
