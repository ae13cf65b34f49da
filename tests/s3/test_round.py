"""A round on an object store: the same registry as in a directory, and nobody else at it meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

import treering
from tests.rounds.test_round import config_of, grow
from tests.training.tiny import make_base
from treering.errors import ConflictError


def test_a_round_on_an_object_store_comes_to_what_it_comes_to_in_a_directory(
    remote: treering.Store, store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(make_base(tmp_path / "base"))
    found = []
    for one in (remote, store):
        support = one.create("support", "labelled", split_key="same")
        for topic in ("billing", "shipping"):
            grow(support, topic)
            assert treering.round(one, config).outcome == "promoted"
        found.append([(a.ref, a.digest, a.status, a.run, a.trained_on) for a in one.adapters("support")])
    assert found[0] == found[1]
    import sys

    monkeypatch.setattr(sys.modules["treering.rounds.driver"], "EXPIRES_S", -5.0)
    with remote.lease("round-support"), pytest.raises(ConflictError, match="another round of support is running"):
        treering.round(remote, config)
