from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("generate_schemas", ROOT / "scripts" / "generate_schemas.py")
assert _spec
assert _spec.loader
generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generator)

FILES: dict[str, dict[str, Any]] = generator.generate()


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
