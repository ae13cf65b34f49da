"""What the routes of one server share: the store, its writers, who may do what, what is under way."""

from __future__ import annotations

import asyncio
import ipaddress
import shlex
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from treering.errors import NotFoundError
from treering.server.keys import EVERY_CORPUS, KeyRing, KeyState, Verb
from treering.server.limits import Budget, Limits, Refusal
from treering.server.metrics import Metrics
from treering.server.writers import Writer, Writers

if TYPE_CHECKING:
    from datetime import datetime

    from treering.front import Store

__all__ = ["Access", "Service", "is_loopback"]

Found = TypeVar("Found")

_READERS = 4


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:  # an address alone: a name that merely begins like one may mean whatever its owner likes
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """What a request may do: what its key allows, or everything while there are no keys."""

    def __init__(self, key: KeyState | None) -> None:
        self._key = key

    def allows(self, verb: Verb, corpus: str | None = None) -> bool:
        """Whether it may do that; None: what is about no single corpus."""
        return self._key is None or self._key.allows(verb, corpus)

    def require(self, verb: Verb, corpus: str | None = None) -> None:
        """Raise Refusal when it may not."""
        if not self.allows(verb, corpus):
            what = f"{verb} {'all corpora' if corpus == EVERY_CORPUS else corpus}" if corpus else verb
            quoted = shlex.quote(corpus or "")
            raise Refusal(
                403, "not-allowed", f"this key isn't good to {what}",
                f"treering keys create {f'--corpus {quoted} ' if corpus else ''}--verbs {verb}",
            )  # fmt: skip

    @property
    def only_corpus(self) -> str | None:
        """The corpus it is about when it can't be about another one."""
        if self._key is None or len(self._key.key.corpora) != 1 or EVERY_CORPUS in self._key.key.corpora:
            return None
        return self._key.key.corpora[0]


class Service:
    """One server's state. Made in the event loop's thread; `close` ends it."""

    def __init__(self, store: Store, limits: Limits, *, needs_keys: bool) -> None:
        self.store, self.limits = store, limits
        self.budget = Budget(limits)
        self.writers = Writers(store, limits)
        self.metrics = Metrics(self.writers, self.budget)
        self.ring = KeyRing(store)
        self.draining = False
        self.under_way = 0  # requests whose answer isn't complete
        self.started = time.monotonic()
        self._needs_keys = needs_keys
        # Apart, so that whoever looks at everything there is doesn't hold up what comes in.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="treering-read")
        self._helpers = ThreadPoolExecutor(_READERS, thread_name_prefix="treering-help")
        self._reading = 0
        self.writers.resume()

    @property
    def needs_keys(self) -> bool:
        """Whether requests need a key: always beyond loopback, and from the first key on that was ever made."""
        return self._needs_keys or not self.ring.is_empty

    async def access(self, authorization: str | None, now: datetime) -> Access:
        """What the bearer of this header may do. Raises Refusal."""
        if not self.needs_keys:
            return Access(None)
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _unknown("no-key", "there is no key", "send Authorization: Bearer KEY")
        state = self.ring.find(token)
        if state is None and self.ring.might_be_new(token):
            await self.beside(self.ring.refresh)
            state = self.ring.find(token)
        if state is None:
            raise _unknown("bad-key", "this isn't a key of this store", "treering keys create --corpus NAME")
        status = state.status(now)
        if status != "active":
            raise _unknown(f"{status}-key", f"the key {state.key.id} is {status}", "treering keys create --corpus NAME")
        return Access(state)

    async def read(self, work: Callable[[], Found]) -> Found:
        """Look into the store for a reader, which may take its time. Raises Refusal when too many do."""
        if self._reading >= self.limits.max_reads:
            raise Budget.full("reads")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        finally:
            self._reading -= 1

    async def beside(self, work: Callable[[], Found]) -> Found:
        """Do something short beside the event loop: parse a large body, look a key or a corpus up."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work)

    async def writer(self, name: str) -> Writer:
        """The writer of a corpus. Raises NotFoundError, UsageError, StoreError."""
        known = self.writers.known(name)
        return known if known is not None else await self.beside(lambda: self.writers.of(name))

    async def answered(self, future: Future[Found]) -> Found:
        """What a writer says. Raises what it raised, Refusal when it takes too long: what becomes of it isn't known then."""
        try:
            async with asyncio.timeout(self.limits.answer_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Refusal(
                503, "too-slow", f"it wasn't on disk within {self.limits.answer_s:g} s",
                "send it again; ids make it count once", retry_after_s=5,
            ) from None  # fmt: skip

    async def corpus_for(self, access: Access, named: str | None) -> str:
        """The corpus that telemetry and hooks go to: as a header names it, else the only one that the key is good for.

        Raises Refusal when neither says. Without keys, a store's only corpus is meant.
        """
        if named:
            return named
        if access.only_corpus is not None:
            return access.only_corpus
        if not self.needs_keys:
            names: list[str] = await self.beside(lambda: [one.name for one in self.store.corpora()])
            if len(names) == 1:
                return names[0]
        raise Refusal(
            400, "no-corpus", "which corpus?", "send the header X-Treering-Corpus, or a key for one corpus alone"
        )

    def close(self) -> None:
        """Store what waits, commit it, let go. Raises StoreError, ConflictError."""
        self.ring.close()
        self._readers.shutdown(wait=False, cancel_futures=True)  # who reads when it ends gets no answer
        self._helpers.shutdown(wait=True)
        self.writers.close()


def _unknown(code: str, message: str, hint: str) -> Refusal:
    return Refusal(401, code, message, hint)


def status_of(exc: Exception) -> tuple[int, int | None]:
    """HTTP status, and seconds to wait, for an error of treering."""
    if isinstance(exc, NotFoundError):
        return 404, None
    codes: dict[int, int] = {2: 400, 3: 422, 5: 409, 6: 503}
    exit_code: Any = getattr(exc, "exit_code", 1)
    status = codes.get(exit_code, 500)
    return status, 5 if status == 503 else None
