"""The architecture as a test: imports point left, and only the store layer knows the engine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import treering

PACKAGE = Path(treering.__file__).parent

# Left to right. A layer may import itself and what stands left of it.
LAYERS = [
    "errors",
    "notebook",
    "client",  # needs errors alone: agents import it
    "schema",
    "formats",
    "engine",
    "store",
    "capture",
    "mixing",
    "training",
    "evaluation",
    "registry",
    "rounds",
    "plugins",
    "report",
    "front",
    "server",
    "demo",
    "cli",
]
TESTING_STOPS_AT = "mixing"  # `testing` is shipped beside the layers: for users' own tests
ENGINE = {"lance", "lancedb"}
HEAVY = {"lance", "lancedb", "torch", "transformers", "safetensors", "sentence_transformers"}


def modules() -> dict[str, ast.Module]:
    """Parsed source by dotted name, `treering.store.base` and the like."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), filename=str(path))
    return found


MODULES = modules()


def imported(name: str, tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; with `at_import`, only those that importing it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")
                is_package = (PACKAGE.parent / Path(*package) / "__init__.py").exists()
                package = package[: len(package) - node.level + (1 if is_package else 0)]
                base = ".".join([*package, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imported(name, ast.Module(body=node.orelse, type_ignores=[]), at_import=True)
        else:
            yield from imported(name, node, at_import=at_import)


def layer(dotted: str) -> str | None:
    """Layer of a module or of a name in one; None for the front door and for other packages."""
    parts = dotted.split(".")
    if parts[0] != "treering" or len(parts) < 2 or f"treering.{parts[1]}" not in MODULES:
        return None
    return parts[1]


def test_every_module_belongs_to_a_layer() -> None:
    known = {*LAYERS, "testing", None}
    assert [name for name in MODULES if layer(name) not in known] == []


def test_imports_point_left() -> None:
    wrong = []
    for name, tree in MODULES.items():
        here = layer(name)
        if here is None:
            continue  # the front door names every layer, lazily
        furthest = LAYERS.index(TESTING_STOPS_AT if here == "testing" else here)
        for target in imported(name, tree):
            there = layer(target)
            if there is None or there == here:
                continue
            if there == "testing" or LAYERS.index(there) > furthest:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_capture_and_mixing_meet_only_in_the_store() -> None:
    for one, other in (("capture", "mixing"), ("mixing", "capture")):
        edges = [
            (n, t) for n, tree in MODULES.items() if layer(n) == one for t in imported(n, tree) if layer(t) == other
        ]
        assert edges == []


def test_training_is_handed_a_loader_and_never_opens_a_store() -> None:
    edges = [
        (name, target)
        for name, tree in MODULES.items()
        if layer(name) == "training"
        for target in imported(name, tree)
        if layer(target) in ("store", "capture")
    ]
    assert edges == []


def test_only_the_store_layer_imports_the_engine() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        if layer(name) != "store"
        for target in imported(name, tree)
        if target.split(".")[0] in ENGINE
    ]
    assert wrong == []


@pytest.mark.parametrize("door", ["treering", "treering.cli"])
def test_the_front_doors_import_nothing_heavy(door: str) -> None:
    if door not in MODULES:
        pytest.skip(f"no {door} yet")
    seen: set[str] = set()
    todo = [door]
    heavy = []
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for target in imported(name, MODULES[name], at_import=True):
            if target.split(".")[0] in HEAVY:
                heavy.append(f"{name} imports {target}")
            parts = target.split(".")
            todo += [m for k in range(1, len(parts) + 1) if (m := ".".join(parts[:k])) in MODULES]
    assert heavy == []


def test_no_folder_or_file_is_named_like_a_public_function() -> None:
    # `treering.mix` and a package `treering/mix/` would shadow each other, whichever is imported last.
    names = {path.stem for path in PACKAGE.iterdir() if path.stem != "__init__"}
    assert sorted(names & set(treering.__all__)) == []


def test_the_front_door_is_sorted_and_every_name_in_it_has_a_home() -> None:
    assert treering.__all__ == sorted(treering.__all__)
    assert set(treering.__all__) <= set(dir(treering))
