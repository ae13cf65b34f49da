"""Keys of the server: who may do what with which corpus, until when.

A key is shown once, when it is made. The store keeps the SHA-256 of it (256 random bits need no slower hash) in an object
that is created and never changed; revoking creates another one beside it. So any host that reaches the store may make and
revoke keys, at the same moment too, and every server of the store learns of it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from treering.errors import AlreadyExistsError, NotFoundError, StoreError, TreeringError, UsageError
from treering.store.documents import parse_document

if TYPE_CHECKING:
    from treering.store.base import BaseStore

__all__ = [
    "EVERY_CORPUS",
    "VERBS",
    "KeyRing",
    "KeyState",
    "Revocation",
    "StoredKey",
    "Verb",
    "create_key",
    "has_keys",
    "list_keys",
    "parse_expiry",
    "revoke_key",
]

logger = logging.getLogger("treering.server")

Verb = Literal["capture", "annotate", "read", "metrics"]
VERBS: tuple[Verb, ...] = get_args(Verb)
#: What a key gets when nothing else is asked for.
USUAL: tuple[Verb, ...] = ("capture", "annotate", "read")
#: The corpus of a key that is good for all of them, those made later too.
EVERY_CORPUS = "*"

_FOLDER = "keys"
_TOKEN = re.compile(r"trk_([0-9a-f]{12})_([0-9a-f]{64})")
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: A revoked or new key is known to a running server within this time; one it has never heard of is looked up at once.
REFRESH_S = 2.0
#: But not more often than this: whoever sends made-up keys mustn't keep the store busy.
_LOOK_AGAIN_S = 0.25

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class StoredKey(_Document):
    """`keys/ID/key.json`: what a key is good for. The key itself is not in the store."""

    format: Literal["treering.key/1"] = "treering.key/1"
    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: Sha256 = Field(description="Of the whole key as text.")
    note: str = Field(description="Whose it is, or what for.")
    corpora: list[str] = Field(min_length=1, description='Names of corpora; "*" is every one.')
    verbs: list[Verb] = Field(min_length=1)
    created_at: datetime
    expires_at: datetime | None = None


class Revocation(_Document):
    """`keys/ID/revoked.json`: the key is good for nothing from now on."""

    format: Literal["treering.key-revoked/1"] = "treering.key-revoked/1"
    id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key and what became of it."""

    key: StoredKey
    revoked_at: datetime | None

    def status(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """What it is worth at a time."""
        if self.revoked_at is not None:
            return "revoked"
        expires = self.key.expires_at
        return "expired" if expires is not None and expires <= now else "active"

    def allows(self, verb: Verb, corpus: str | None) -> bool:
        """Whether it is good for a verb with a corpus; None: for what is about no single one, such as /metrics."""
        if verb not in self.key.verbs:
            return False
        return corpus is None or EVERY_CORPUS in self.key.corpora or corpus in self.key.corpora


def create_key(
    store: BaseStore,
    corpora: Sequence[str],
    *,
    verbs: Sequence[str] = USUAL,
    expires_at: datetime | None = None,
    note: str = "",
) -> tuple[StoredKey, str]:
    """Make a key; what the store keeps of it, and the key, which nobody can show again.

    Raises UsageError for no corpus, a verb that isn't one, a time that is past, NotFoundError for a corpus that isn't there.
    """
    if not corpora:
        raise UsageError("a key is for a corpus", code="bad-key", hint="name one, or '*' for every one")
    for name in corpora:
        if name != EVERY_CORPUS:
            store.corpus(name)
    unknown = [verb for verb in verbs if verb not in VERBS]
    if unknown or not verbs:
        what = f"there is no verb {unknown[0]!r}" if unknown else "a key without verbs opens nothing"
        raise UsageError(what, code="bad-key", hint=f"verbs are {', '.join(VERBS)}")
    now = datetime.now(UTC)
    if expires_at is not None and expires_at <= now:
        raise UsageError(f"{expires_at:%Y-%m-%d %H:%M} UTC is past: the key would open nothing", code="bad-key")
    while True:
        key_id = secrets.token_hex(6)
        token = f"trk_{key_id}_{secrets.token_hex(32)}"
        made = StoredKey(
            id=key_id,
            sha256=_hashed(token),
            note=note,
            corpora=sorted(set(corpora)),
            verbs=[verb for verb in VERBS if verb in verbs],
            created_at=now,
            expires_at=expires_at,
        )
        with suppress(AlreadyExistsError):
            store.objects.create(f"{_FOLDER}/{key_id}/key.json", made.model_dump_json(indent=2).encode())
            return made, token


def list_keys(store: BaseStore) -> list[KeyState]:
    """All keys that were ever made, oldest first. Raises StoreError."""
    paths = set(store.objects.list(_FOLDER))
    found = [_read(store, key_id, paths) for key_id in _ids(paths)]
    return sorted(found, key=lambda one: (one.key.created_at, one.key.id))


def has_keys(store: BaseStore) -> bool:
    """Whether a key was ever made, one that can't be read included. Raises StoreError."""
    return bool(_ids(store.objects.list(_FOLDER)))


def _ids(paths: Iterable[str]) -> list[str]:
    parts = [path.split("/") for path in paths]
    return [one[1] for one in parts if len(one) == 3 and one[2] == "key.json"]


def _read(store: BaseStore, key_id: str, paths: Container[str]) -> KeyState:
    """A key, of which `paths` tell whether it was revoked. Raises StoreError when its document is damaged."""
    path, revoked = f"{_FOLDER}/{key_id}/key.json", f"{_FOLDER}/{key_id}/revoked.json"
    key = parse_document(StoredKey, path, store.objects.get(path))
    if key.id != key_id:
        raise StoreError(f"{path} is the key {key.id}", code="document-damaged")
    at = None
    if revoked in paths:
        try:
            at = parse_document(Revocation, revoked, store.objects.get(revoked)).at
        except StoreError:  # that it is there says enough
            at = key.created_at
    return KeyState(key, at)


def revoke_key(store: BaseStore, key_id: str) -> KeyState:
    """Make a key worthless for good; one that is already stays so.

    Raises NotFoundError, and StoreError when its document is damaged: it is revoked all the same.
    """
    if key_id not in _ids(store.objects.list(_FOLDER)):
        raise NotFoundError(f"there is no key {key_id!r}", code="no-key", hint="treering keys list shows their ids")
    with suppress(AlreadyExistsError):  # it was before, or by somebody else at the same moment
        data = Revocation(id=key_id, at=datetime.now(UTC)).model_dump_json(indent=2).encode()
        store.objects.create(f"{_FOLDER}/{key_id}/revoked.json", data)
    return _read(store, key_id, {f"{_FOLDER}/{key_id}/revoked.json"})


def parse_expiry(text: str) -> datetime:
    """`90d`, `12h`, `30m`, `2w`: from now; or a date or time in ISO 8601, UTC unless it says otherwise. Raises UsageError."""
    if match := _AGE.fullmatch(text):
        return _until(text, lambda: datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])}))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a time nor an age", code="bad-expiry", hint="such as 90d, 12h or 2027-01-31"
        ) from None
    return _until(text, lambda: moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))


def _until(text: str, moment: Callable[[], datetime]) -> datetime:
    try:
        return moment()
    except OverflowError:
        raise UsageError(
            f"{text!r} is beyond the year 9999 in UTC", code="bad-expiry", hint="such as 2027-01-31"
        ) from None


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class KeyRing:
    """The keys of a store in memory, so that no request waits for the store; a thread looks for changes.

    A server that has lost sight of its store goes on with what it knew.
    """

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._looked = 0.0
        self._states: dict[str, KeyState] = {}
        self._is_empty = True
        self._complained: set[str] = set()
        self._stop = threading.Event()
        self.refresh()
        self._thread = threading.Thread(target=self._keep_fresh, name="treering-keys", daemon=True)
        self._thread.start()

    @property
    def is_empty(self) -> bool:
        """Whether no key was ever made. Keys that expired or were revoked count: losing the last one opens nothing."""
        return self._is_empty

    def refresh(self) -> None:
        """Read the keys anew; of one that can't be read what was known holds, and its revocation. Raises StoreError."""
        with self._lock:
            self._looked = time.monotonic()
            paths = set(self._store.objects.list(_FOLDER))
            states = dict(self._states)
            for key_id in _ids(paths):
                self._is_empty = False
                try:
                    states[key_id] = _read(self._store, key_id, paths)
                except (StoreError, NotFoundError) as exc:
                    if key_id not in self._complained:
                        self._complained.add(key_id)
                        logger.error("the key %s can't be read: %s", key_id, exc)
                    known = states.get(key_id)
                    if known is not None and f"{_FOLDER}/{key_id}/revoked.json" in paths:
                        states[key_id] = KeyState(known.key, known.revoked_at or datetime.now(UTC))
            self._states = states

    def find(self, token: str) -> KeyState | None:
        """The key that this is, whatever it is worth; None when it isn't one. Compares in constant time."""
        match = _TOKEN.fullmatch(token)
        state = self._states.get(match[1]) if match else None
        expected = state.key.sha256 if state is not None else "0" * 64
        same = hmac.compare_digest(_hashed(token), expected)
        return state if same and state is not None else None

    def might_be_new(self, token: str) -> bool:
        """Whether it looks like a key that was made since the last look, which is long enough ago to look again."""
        match = _TOKEN.fullmatch(token)
        is_unknown = match is not None and match[1] not in self._states
        return is_unknown and time.monotonic() - self._looked > _LOOK_AGAIN_S

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _keep_fresh(self) -> None:
        failed = False
        while not self._stop.wait(REFRESH_S):
            try:
                self.refresh()
            except Exception as exc:  # the store may come back; until then what we know holds
                if not failed:
                    known = isinstance(
                        exc, TreeringError
                    )  # a store that is away is no defect: where it happened says nothing
                    logger.error(
                        "the keys can't be looked at: one that is revoked meanwhile stays good: %s",
                        exc,
                        exc_info=not known,
                    )
                failed = True
            else:
                failed = False
