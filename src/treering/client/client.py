"""`treering.Client`: a server of treering, as agents hold it."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from treering.client.recorder import RemoteRecorder
from treering.client.sender import Sender, Settings
from treering.client.spool import Spool, spool_directory
from treering.errors import (
    ConflictError,
    InvalidRecordError,
    NotFoundError,
    Problem,
    StoreError,
    TreeringError,
    UsageError,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["Client"]

Wrapped = TypeVar("Wrapped")
Function = TypeVar("Function", bound=Callable[..., Any])

_MIB = 1 << 20
_OTHERS_S = 1.0


class Client:
    """Captures into the corpora of a server without ever holding the agent up. Thread-safe; make one after a fork.

    with treering.Client("https://capture.example:8321", key, corpus="support") as client:
        with client.capture() as live:
            live.add({"messages": […]})
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        corpus: str | None = None,
        spool: str | os.PathLike[str] | Literal[False] | None = None,
        block_s: float = 0.05,
        close_s: float = 10.0,
        timeout_s: float = 30.0,
        spool_mb: float = 1_024,
        memory_mb: float = 64,
        verify: bool | str = True,
    ) -> None:
        """Talk to the server at `url` with a key.

        key: else what TREERING_KEY holds. corpus: where things go unless a call names another one. spool: a directory for
        what waits to be sent [the user's state directory]; False keeps it in memory, and a crash loses it. block_s: longest
        time that an `add` or `extend` waits, which is for the disk. close_s: how long closing waits for the server.
        timeout_s: of one request. spool_mb, memory_mb: what waits at most; beyond it records are dropped, counted, and
        warned about. verify: as httpx takes it. Raises UsageError for a bad URL or no httpx, StoreError when the spool
        can't be made.
        """
        try:
            import httpx
        except ImportError as exc:
            raise UsageError(
                "the client needs httpx", code="missing-extra", hint="pip install 'treering[client]'"
            ) from exc
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} isn't a server's URL", code="bad-url", hint="http://127.0.0.1:8321")
        if not 0 <= block_s <= 60:
            raise UsageError(f"block_s is from 0 to 60 seconds, not {block_s!r}", code="bad-argument")
        token = key if key is not None else os.environ.get("TREERING_KEY")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(timeout_s, connect=5.0), verify=verify
            )
        except (httpx.InvalidURL, ValueError, UnicodeError) as exc:
            raise UsageError(f"{url!r} isn't a server's URL: {exc}", code="bad-url") from exc
        self.url, self._corpus = url.rstrip("/"), corpus
        self._is_durable = spool is not False
        directory = None if spool is False else spool_directory(self.url, spool)
        self._settings = Settings(block_s, int(memory_mb * _MIB), int(spool_mb * _MIB))
        self._close_s = close_s
        self._sender = Sender(self._http, Spool(directory), self._settings)
        self._pid = os.getpid()
        self._closed = False
        atexit.register(_close_at_exit, weakref.ref(self))

    def __repr__(self) -> str:
        return f"Client({self.url!r})"  # never the key

    def capture(self, corpus: str | None = None) -> RemoteRecorder:
        """A recorder for a corpus: `with client.capture("support") as live: live.add({...})`. Raises UsageError."""
        self._check_usable()
        return RemoteRecorder(
            self._sender,
            self._name(corpus),
            block_s=self._settings.block_s,
            close_s=self._close_s,
            is_durable=self._is_durable,
        )

    def annotate(
        self,
        id: str,  # noqa: A002  (as the column is called)
        *,
        corpus: str | None = None,
        **said: Any,
    ) -> None:
        """Say something about a record: `label`, `outcome`, `quality`, `correction`, `exclude`, `intents`, `by`, `note`.

        Asks the server and waits for it, unlike capturing. Sends the record first if it waits here. Raises as
        `Corpus.annotate` does, and StoreError when the server can't be reached.
        """
        self._check_usable()
        name = self._name(corpus)
        if not self._sender.wait(name, self._sender.last, time.monotonic() + self._close_s):
            raise StoreError(
                f"records for {name} aren't at the server yet: {self._sender.trouble(name) or 'it takes its time'}",
                code="not-delivered",
            )
        import httpx

        try:
            answer = self._http.post(f"/v1/corpora/{name}/annotations", json={"id": id, **said})
        except httpx.HTTPError as exc:
            raise StoreError(f"{self.url} can't be reached: {exc}", code="unreachable") from exc
        except (TypeError, ValueError) as exc:
            raise UsageError(f"JSON can't hold this annotation: {exc}", code="bad-rows") from exc
        if answer.status_code != 200:
            raise _error(answer)

    def capture_calls(
        self,
        function: Function | None = None,
        *,
        corpus: str | None = None,
        record: Callable[[Mapping[str, Any], Any], Mapping[str, Any] | None] | None = None,
        session_id: str | Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> Any:
        """A decorator: each call of the function becomes a record once it has returned; also of async functions and generators.

        Without `record` it is a `chat` record: an argument `messages`, else each text argument as the user's words, and what
        was returned as the assistant's. record: makes one out of (arguments by name, result); None captures nothing. session_id: text, or a function of the arguments. What goes
        wrong in capturing is logged, and never reaches the caller.
        """
        from treering.client.calls import decorated

        self._check_usable()
        recorder = self.capture(corpus)
        if function is not None:
            return decorated(function, recorder, record, session_id)
        return lambda one: decorated(one, recorder, record, session_id)

    def wrap_openai(
        self,
        openai: Wrapped,
        *,
        corpus: str | None = None,
        session_id: str | Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> Wrapped:
        """Have an `openai.OpenAI` or `AsyncOpenAI` captured: each `chat.completions.create` or `parse`, streamed ones too.

        The same object comes back: `api = client.wrap_openai(openai.OpenAI())`. A record holds the messages and the answer,
        tools and tool calls; `origin` is `model:NAME`, `meta` has model, usage, finish reason and the response's id. session_id: text, or a function of the call's arguments.
        """
        from treering.client.calls import wrap_openai

        self._check_usable()
        wrap_openai(openai, self.capture(corpus), session_id)
        return openai

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the server has all that was added, to any corpus. Raises StoreError when it hasn't by then."""
        self._check_usable()
        if not self._sender.wait(None, self._sender.last, time.monotonic() + timeout):
            raise StoreError(
                f"records aren't at the server yet: {self._sender.trouble(None) or 'it takes its time'}",
                code="not-delivered",
                hint=self._sender.advice(None),
            )

    def close(self, timeout: float | None = None) -> int:
        """Send what is left, for `timeout` [`close_s`] seconds at most; how many records wait for the next client.

        For what was taken over from a process that is gone it waits a second: that was others' before, and may not be for its key.
        """
        if self._closed or self._pid != os.getpid():
            return 0
        self._closed = True
        until = time.monotonic() + (self._close_s if timeout is None else timeout)
        if self._sender.wait(None, self._sender.last, until):
            self._sender.wait(None, self._sender.last_taken_over, min(until, time.monotonic() + _OTHERS_S))
        left = self._sender.close()
        self._http.close()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self, corpus: str | None) -> str:
        name = corpus or self._corpus
        if not name:
            raise UsageError("which corpus?", code="no-corpus", hint='Client(url, key, corpus="support")')
        if "/" in name or name in (".", ".."):
            raise UsageError(f"{name!r} isn't a corpus", code="no-corpus")
        return name

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                "this client belongs to the process that made it", code="forked", hint="make one after the fork"
            )
        if self._closed:
            raise UsageError("this client is closed", code="closed", hint="make another one")


def _close_at_exit(ref: weakref.ref[Client]) -> None:
    client = ref()
    if client is not None:
        with suppress(Exception):
            client.close()


def _error(answer: httpx.Response) -> TreeringError:
    """The server's error as ours."""
    try:
        said = answer.json()["error"]
        message, code, hint = str(said["message"]), str(said["code"]), said.get("hint")
    except (ValueError, KeyError, TypeError):
        return StoreError(f"the server answered {answer.status_code}", code="unreachable")
    if answer.status_code == 404:
        return NotFoundError(message, code=code, hint=hint)
    if answer.status_code == 409:
        return ConflictError(message, code=code, hint=hint)
    if answer.status_code == 422:
        return InvalidRecordError(message, [Problem((), "bad-value", message)], hint=hint)
    if answer.status_code < 500:
        return UsageError(message, code=code, hint=hint)
    return StoreError(message, code=code, hint=hint)
