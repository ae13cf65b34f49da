"""Objects in a directory: what obstore's own reader sees of it, its staged files apart."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore

from treering.errors import NotFoundError, StoreError
from treering.store.objects import LocalObjects

NAMES = st.text(st.sampled_from("abé .-_=+"), min_size=1, max_size=4).filter(lambda name: name.strip(". "))


@given(paths=st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=9), max_size=8))
def test_what_was_created_is_listed_and_read_as_by_obstore(
    tmp_path_factory: pytest.TempPathFactory, paths: dict[tuple[str, ...], bytes]
) -> None:
    root = tmp_path_factory.mktemp("objects")
    objects = LocalObjects(root)
    made: dict[str, bytes] = {}
    for parts, data in paths.items():
        path = "/".join(parts)
        if any(path.startswith(f"{one}/") or one.startswith(f"{path}/") for one in made):
            continue  # a file can't be a folder as well
        objects.create(path, data)
        made[path] = data
    theirs = LocalStore(root)
    for prefix in {"", *(path.rpartition("/")[0] for path in made), "nowhere"}:
        known = {str(m["path"]): m for batch in obstore.list(theirs, prefix or None) for m in batch}
        assert objects.sizes(prefix) == objects.sizes(f"{prefix}/") == {path: m["size"] for path, m in known.items()}
        assert objects.list(prefix) == sorted(known)
        seen = objects.written(prefix)
        assert seen.keys() == known.keys()
        assert all(abs((seen[path] - m["last_modified"]).total_seconds()) < 1e-3 for path, m in known.items())
    for path, data in made.items():
        assert objects.get(path) == data
        assert objects.exists(path)
        assert abs((objects.written_at(path) - datetime.now(UTC)).total_seconds()) < 60
        objects.delete(path)
        objects.delete(path)
        assert not objects.exists(path)
    assert objects.list("") == []


def test_what_is_no_object_isnt_there(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    objects.create("a/b", b"x")
    (tmp_path / "a" / "c#12").write_bytes(b"never got its name")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "named").symlink_to(tmp_path / "a" / "b")
    assert objects.list("") == ["a/b", "a/named"]
    assert objects.list("a/b") == []
    for path in ("a", "a/b/c", "a/gone", "z"):
        assert not objects.exists(path)
        with pytest.raises(NotFoundError, match="isn't in the store"):
            objects.get(path)
    objects.delete("a/b/c")
    with pytest.raises(StoreError, match="can't remove a"):
        objects.delete("a")


def test_a_folder_is_listed_while_it_changes(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    for n in range(20):
        objects.create(f"kept/{n}/x", b"")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            (tmp_path / "kept" / "more").mkdir(exist_ok=True)
            (tmp_path / "kept" / "more" / "y").write_bytes(b"")
            (tmp_path / "kept" / "more" / "y").unlink()
            (tmp_path / "kept" / "more").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert len(set(objects.list("kept")) - {"kept/more/y"}) == 20
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_mayn_t_be_read_is_an_error_and_not_absent(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    objects.create("a/b", b"x")
    (tmp_path / "a").chmod(0)
    try:
        for look in (objects.get, objects.exists, objects.list):
            with pytest.raises(StoreError, match="can't read"):
                look("a/b" if look is not objects.list else "a")
    finally:
        (tmp_path / "a").chmod(0o700)
