"""Looking at a store on an object store: the same as in a directory."""

from __future__ import annotations

import treering
from tests.rounds.looking import capture, produce, tickets


def test_diff_status_and_audit_say_on_an_object_store_what_they_say_in_a_directory(
    remote: treering.Store, store: treering.Store
) -> None:
    said = []
    for one in (remote, store):
        support = one.create("support", "labelled")
        capture(support, tickets(120, seed=1, ts="2026-01-01T00:00:00+00:00"))
        produce(one, "support", ["support@v1"])
        capture(support, tickets(120, seed=2, topics=["delivery"], ts="2026-01-02T00:00:00+00:00"), seal=False)
        support.annotate("s1-10", exclude=True)
        status = treering.status(one, "support")
        said.append((treering.diff(one, "support"), treering.audit(one, "support@v1"), status.reasons[:2]))
        assert status.new.rows == 120
        assert one.load("support@v1").annotations(["s1-10", "s1-11"]).column("id").to_pylist() == ["s1-10"]
    assert said[0] == said[1]
