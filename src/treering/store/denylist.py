"""What was erased from a corpus and must not come back, by keyed hashes: the store keeps nothing that it could be read from.

Ids of erased records are denied for ever, erased subjects unless their erasure says otherwise. Whoever commits asks after
he has opened the table, and once more after his commit: what was denied in between he erases himself (capture.commit).
Does not erase (erase).
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import AlreadyExistsError, NotFoundError, StoreError
from treering.store.documents import ErasedFound, ErasureRecord, StoredRows

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus

__all__ = [
    "Bools",
    "Denylist",
    "Hashes",
    "KeyedHash",
    "all_denied",
    "among",
    "denylist",
    "keep",
    "keyed_hash",
    "load_stored",
]

_KEY = "erasures/key"
_KEY_BYTES = 32
_BITS = np.dtype(">u8")

Bools = np.ndarray[Any, np.dtype[np.bool_]]

#: What stands between quotes in JSON, and words, in text that could not be read as a record.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_QUOTED_BY_REPR = re.compile(r"'((?:[^'\\]|\\.)*)'")
_WORD = re.compile(r"[^\s\"'{}\[\]():,;=<>|]+")
_DEEPEST = 200


class KeyedHash:
    """Texts → 128 bits, under the store's random key: without the key nobody can try out names or addresses."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def one(self, text: str) -> bytes:
        """16 bytes of one text."""
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()

    def many(self, texts: Iterable[str]) -> bytes:
        """16 bytes a text, one after the other."""
        key, blake2b = self._key, hashlib.blake2b
        return b"".join(
            [blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=16).digest() for text in texts]
        )


class Hashes:
    """A set of 128-bit hashes, 16 bytes each in memory."""

    def __init__(self, data: bytes = b"") -> None:
        pairs = np.frombuffer(data, _BITS).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        pairs = pairs[order]
        new = np.ones(len(pairs), bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        self._pairs = np.ascontiguousarray(pairs[new])
        self._high = self._pairs[:, 0].astype(np.uint64)
        self._low = self._pairs[:, 1].astype(np.uint64)

    def __len__(self) -> int:
        return len(self._pairs)

    def __or__(self, other: Hashes) -> Hashes:
        return Hashes(self.to_bytes() + other.to_bytes())

    def to_bytes(self) -> bytes:
        """16 bytes each, ascending."""
        return self._pairs.tobytes()

    def among(self, data: bytes) -> Bools:
        """Which of the hashes in `data` are in the set: bool (n,)."""
        asked = np.frombuffer(data, _BITS).reshape(-1, 2).astype(np.uint64)
        found = np.zeros(len(asked), bool)
        if not len(self) or not len(asked):
            return found
        first = np.searchsorted(self._high, asked[:, 0], "left")
        end = np.searchsorted(self._high, asked[:, 0], "right")
        for at in np.flatnonzero(first < end).tolist():
            found[at] = bool((self._low[first[at] : end[at]] == asked[at, 1]).any())
        return found

    def __contains__(self, item: bytes) -> bool:
        return bool(self.among(item)[0])


class Denylist:
    """What is denied in one corpus, as of the newest of its erasures that was looked at. Immutable."""

    def __init__(self, hash_of: KeyedHash | None, ids: Hashes, subjects: Hashes, known: frozenset[str]) -> None:
        self.hash_of = hash_of
        self.ids = ids
        self.subjects = subjects
        self.known = known  # the documents it was made of

    def __bool__(self) -> bool:
        return bool(len(self.ids) or len(self.subjects))

    @property
    def newest(self) -> int:
        """Number of the newest erasure that it knows; 0 without any."""
        return max((int(path.rpartition("/")[2].partition(".")[0]) for path in self.known), default=0)

    def denies(self, ids: Any, subjects: Any) -> Bools:
        """Which records are denied, by their `id` and `subject` columns (`pa.Array`s or chunked; nulls are let in)."""
        return self._among(self.ids, ids) | self._among(self.subjects, subjects)

    def denies_record(self, record_id: Any, subject: Any) -> bool:
        """Whether a record of this id and subject is denied; either may be missing."""
        assert self.hash_of is not None
        return (isinstance(record_id, str) and self.hash_of.one(record_id) in self.ids) or (
            isinstance(subject, str) and self.hash_of.one(subject) in self.subjects
        )

    def _among(self, denied: Hashes, texts: Any) -> Bools:
        found = np.zeros(len(texts), bool)
        if not len(denied) or not len(texts):
            return found
        return among(self.hash_of, denied, texts)

    def mentions(self, value: Any) -> bool:
        """Whether a refused record names a denied id or subject, wherever it stands in it.

        Values and keys are compared as wholes, numbers as their text. Text that may itself be a record that could not be
        read is taken apart: quoted strings and words. Such text is also what some *other* record says about a subject:
        rather too much is found in refused records than too little.
        """
        if not self:
            return False
        assert self.hash_of is not None
        denied, hash_of = self.ids | self.subjects, self.hash_of
        texts = set(_texts(value, whole=isinstance(value, str)))
        return bool(texts) and bool(denied.among(hash_of.many(texts)).any())


def among(hash_of: KeyedHash | None, denied: Hashes, texts: Any) -> Bools:
    """Which of a column's texts have their keyed hash in `denied`: bool (n,). Each distinct text is hashed once."""
    assert hash_of is not None
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if isinstance(texts, pa.ChunkedArray):  # a table without rows
        return np.zeros(0, bool)
    coded = texts if pa.types.is_dictionary(texts.type) else pc.dictionary_encode(texts)
    hit = denied.among(hash_of.many(coded.dictionary.to_pylist()))
    if not hit.any():
        return np.zeros(len(texts), bool)
    codes = np.asarray(coded.indices.fill_null(len(hit)))
    found: Bools = np.append(hit, False)[codes]
    return found


def _texts(value: Any, *, whole: bool, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item, whole=False, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, whole=False, depth=depth + 1)
    elif isinstance(value, str):
        yield value
        if whole or value.lstrip()[:1] in ("{", "["):
            yield from _of_text(value, depth)
    elif isinstance(value, bytes | bytearray):
        yield from _texts(bytes(value).decode("utf-8", "replace"), whole=True, depth=depth + 1)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _of_text(text: str, depth: int) -> Iterator[str]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict | list):
        yield from _texts(parsed, whole=False, depth=depth + 1)
    yield from _WORD.findall(text)
    yield from _QUOTED_BY_REPR.findall(text)
    for quoted in _QUOTED.findall(text):
        yield quoted
        try:
            yield json.loads(f'"{quoted}"')
        except ValueError:
            continue


_NOTHING = Denylist(None, Hashes(), Hashes(), frozenset())

#: By store and table: what this process has read so far. Documents never change, so it only ever grows.
_READ: dict[tuple[str, str], Denylist] = {}


def keyed_hash(store: BaseStore, *, make: bool = False) -> KeyedHash | None:
    """The store's keyed hash; None when nothing was ever erased in it, unless it is to be made."""
    try:
        key = store.objects.get(_KEY)
    except NotFoundError:
        if not make:
            return None
        with suppress(AlreadyExistsError):  # another process was faster
            store.objects.create(_KEY, secrets.token_bytes(_KEY_BYTES))
        key = store.objects.get(_KEY)
    if len(key) != _KEY_BYTES:
        raise StoreError(f"{_KEY} is damaged", code="document-damaged", hint="restore it from a backup")
    return KeyedHash(key)


def denylist(corpus: BaseCorpus, *, look: bool = True) -> Denylist:
    """What is denied in the corpus by now: one listing, and what is new in it. Raises StoreError.

    Without `look`, what this process knew last.
    """
    folder = f"erasures/{corpus.record.table}"
    key = (corpus.store.marker.id + corpus.store.uri, corpus.record.table)
    if not look:
        return _READ.get(key, _NOTHING)
    found = frozenset(p for p in corpus.store.objects.list(folder) if p.endswith(".json") and ".receipt." not in p)
    if not found:
        return _NOTHING
    read = _READ.get(key, _NOTHING)
    new = found - read.known
    if not new:
        return read
    hash_of = read.hash_of or keyed_hash(corpus.store)
    if hash_of is None:
        raise StoreError(
            f"{_KEY} is missing, and records were erased from {corpus.name}",
            code="document-missing",
            hint="restore it from a backup: without it, erased records could come back",
        )
    ids, subjects = [read.ids.to_bytes()], [read.subjects.to_bytes()]
    for path in sorted(new):
        if path.endswith(".found.json"):
            ids.append(load_stored(corpus.store, corpus.store.read_document(ErasedFound, path).ids))
            continue
        record = corpus.store.read_document(ErasureRecord, path)
        if record.ids is not None:
            ids.append(load_stored(corpus.store, record.ids))
        if record.block_subjects:
            subjects += [bytes.fromhex(text) for text in record.subjects]
    made = Denylist(hash_of, Hashes(b"".join(ids)), Hashes(b"".join(subjects)), read.known | new)
    _READ[key] = made
    return made


def load_stored(store: BaseStore, stored: StoredRows) -> bytes:
    """The bytes that a document names. Raises StoreError when they aren't those."""
    data = store.objects.get(stored.path)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise StoreError(f"{stored.path} is damaged", code="document-damaged", hint="restore it from a backup")
    return data


def keep(store: BaseStore, path: str, data: bytes, count: int) -> StoredRows:
    """Store bytes under a name made of them, beside a document that will name them; the same again is there already."""
    digest = hashlib.sha256(data).hexdigest()
    stored = StoredRows(path=f"{path}.{digest[:32]}", sha256=digest, count=count)
    with suppress(AlreadyExistsError):
        store.objects.create(stored.path, data)
    return stored


def all_denied(corpus: BaseCorpus, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that are denied by now."""
    denied = denylist(corpus)
    if not denied or not ids:
        return []
    assert denied.hash_of is not None
    return [i for i, hit in zip(ids, denied.ids.among(denied.hash_of.many(ids)).tolist(), strict=True) if hit]
