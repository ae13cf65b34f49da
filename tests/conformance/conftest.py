"""Test suites of others, from the npm registry: fetched once, checked by their digests, kept in the user's cache."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import platformdirs
import pytest

#: name → (version, SHA-512). Both MIT: json-test-suite is Nicolas Seriot's JSONTestSuite, blns Max Woolf's list.
SUITES = {
    "json-test-suite": (
        "1.0.0",
        "NNGEsqtbHqQcocE+kIb2NzmqU3BWN3bpI39DBME0GrjIRPxme/LCSH+7fIHDhJGDIArStvS5cEp3AJVUbU8iZQ==",
    ),
    "blns": ("2.0.4", "ZEZZD8DvGJhTw9oE3uLjyThFDMRQbcH011YySUK+kAcueHvaUDRfWKp7QJrQblat8WzcegWwVFuNd+XZ49LROQ=="),
}


def fetched(name: str, member: str) -> str:
    """One file of a suite, as text. Skips the test when the registry can't be reached."""
    version, digest = SUITES[name]
    kept = Path(platformdirs.user_cache_dir("treering-tests")) / f"{name}-{version}.tgz"
    if not kept.exists():
        registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
        try:
            with urllib.request.urlopen(f"{registry}/{name}/-/{name}-{version}.tgz", timeout=30) as answer:
                data = answer.read()
        except OSError as exc:
            pytest.skip(f"{name} can't be fetched from the npm registry: {exc}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(data)
        part.rename(kept)
    data = kept.read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == digest, f"{kept} isn't the suite it should be"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.extractfile(f"package/{member}")
        assert found is not None
        return found.read().decode()


@pytest.fixture(scope="session")
def json_cases() -> list[dict[str, Any]]:
    """JSONTestSuite: `name` (y_ must parse, n_ mustn't, i_ is the parser's choice) and `input`."""
    text = fetched("json-test-suite", "data/parsing.js")
    cases = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert len(cases) == 318
    return cases


@pytest.fixture(scope="session")
def naughty_strings() -> list[str]:
    """The big list of naughty strings."""
    strings = json.loads(fetched("blns", "resources/blns.json"))
    assert len(strings) == 485
    return strings
