"""Calls become records: of any function, and of the OpenAI client. Whatever goes wrong here stays here."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from treering.errors import UsageError

if TYPE_CHECKING:
    from treering.client.recorder import RemoteRecorder

__all__ = ["decorated", "wrap_openai"]

logger = logging.getLogger("treering.client")

Make = Callable[[Mapping[str, Any], Any], Mapping[str, Any] | None]
Session = str | Callable[[Mapping[str, Any]], str | None] | None

#: Names of arguments that aren't what was asked and must be in no corpus.
_SECRET = re.compile(r"(?i)(^|_)(api_?key|key|token|secret|password|passwd|pwd|credentials?|auth|authorization)$")

#: Members of a message that the record type `chat` has.
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def decorated(function: Callable[..., Any], recorder: RemoteRecorder, record: Make | None, session: Session) -> Any:
    """The function, whose calls are captured once they have returned."""
    signature = inspect.signature(function)

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            made = record(given, result) if record is not None else _chat_of(given, result)
            if made is not None:
                _add(recorder, made, given, session)
        except Exception:
            logger.exception("a call of %s wasn't captured", function.__qualname__)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            keep(args, kwargs, result)
            return result

        return coroutine
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            parts = []
            async for part in function(*args, **kwargs):
                parts.append(part)
                yield part
            keep(args, kwargs, _joined(parts))

        return async_generator
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            parts = []
            for part in function(*args, **kwargs):
                parts.append(part)
                yield part
            keep(args, kwargs, _joined(parts))

        return generator

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        keep(args, kwargs, result)
        return result

    return plain


def _add(recorder: RemoteRecorder, made: Mapping[str, Any], given: Mapping[str, Any], session: Session) -> None:
    found = session(given) if callable(session) else session
    recorder.add({**made, "session_id": found} if found is not None and made.get("session_id") is None else made)


def _joined(parts: list[Any]) -> Any:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else parts


def _chat_of(given: Mapping[str, Any], result: Any) -> dict[str, Any] | None:
    """A chat record of a call: what was asked, and what came back."""
    messages = given.get("messages")
    if isinstance(messages, list | tuple) and messages:
        asked = [_message(one) for one in messages]
    else:
        texts = [one for name, one in given.items() if isinstance(one, str) and not _SECRET.search(name)]
        asked = [{"role": "user", "content": one} for one in texts]
    if not asked:
        return None
    is_message = isinstance(result, Mapping) and "role" in result
    answer = _message(result) if is_message else {"role": "assistant", "content": _text(result)}
    return {"messages": [*asked, answer], "origin": "model"}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _message(given: Any) -> dict[str, Any]:
    """A message as our record type has it. The importers' conversion keeps more, and needs Arrow (formats.chat)."""
    found = given if isinstance(given, Mapping) else given.model_dump(exclude_none=True)
    made = {name: found[name] for name in _FIELDS if found.get(name) is not None}
    if isinstance(made.get("content"), list | tuple):
        made["content"] = "\n".join(map(_part, made["content"]))
    if "content" not in made and isinstance(found.get("refusal"), str):
        made["content"] = found["refusal"]
    if "tool_calls" in made:
        made["tool_calls"] = [_call(one) for one in made["tool_calls"]] or None
    return {name: value for name, value in made.items() if value is not None}


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text", part.get("refusal"))
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"


def _call(given: Any) -> dict[str, Any]:
    call = given if isinstance(given, Mapping) else given.model_dump(exclude_none=True)
    function = call.get("function") or call.get("custom") or {}
    arguments = function.get("arguments", function.get("input", "{}"))
    made = {"type": "function", "function": {"name": function.get("name", ""), "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") else made


# --- openai ----------------------------------------------------------------------------------------------------------


def wrap_openai(openai: Any, recorder: RemoteRecorder, session: Session) -> None:
    """Capture `chat.completions.create` and `parse` of an OpenAI client. Raises UsageError for anything else, or twice."""
    completions = getattr(getattr(openai, "chat", None), "completions", None)
    if completions is None or not callable(getattr(completions, "create", None)):
        raise UsageError(f"a {type(openai).__name__} isn't an OpenAI client", code="bad-argument")
    if getattr(completions.create, "__treering__", False):
        raise UsageError("this client is captured already", code="bad-argument")
    for name in ("create", "parse"):
        method = getattr(completions, name, None)
        if method is not None:
            setattr(completions, name, _captured(method, recorder, session))


def _captured(method: Callable[..., Any], recorder: RemoteRecorder, session: Session) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(inspect.unwrap(method)):

        @functools.wraps(method)
        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            asked = _asked(kwargs)
            return _watched(await method(*args, **kwargs), asked, recorder, session)

        wrapped: Callable[..., Any] = awaiting
    else:

        @functools.wraps(method)
        def calling(*args: Any, **kwargs: Any) -> Any:
            asked = _asked(kwargs)
            return _watched(method(*args, **kwargs), asked, recorder, session)

        wrapped = calling
    wrapped.__treering__ = True  # type: ignore[attr-defined]
    return wrapped


def _asked(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """What is asked, as it is now: whoever calls may append the answer to the very same list. None when it can't be read.

    What can be gone through once alone is put into `kwargs` as a list: the API must get it, too.
    """
    for name in ("messages", "tools"):
        if isinstance(kwargs.get(name), Iterator):
            kwargs[name] = list(kwargs[name])  # what this raises is the caller's own
    try:
        messages = kwargs.get("messages")
        return {**kwargs, "messages": list(messages) if isinstance(messages, Iterable) else []}
    except Exception:
        logger.exception("what a completion was asked can't be read")
        return None


def _watched(result: Any, asked: Mapping[str, Any] | None, recorder: RemoteRecorder, session: Session) -> Any:
    """The result; a stream tells what went by once it has ended."""
    if asked is None:
        return result
    try:
        if hasattr(result, "choices"):
            _keep(recorder, asked, session, result.model_dump(exclude_none=True))
        elif hasattr(result, "_iterator"):  # of openai's Stream and AsyncStream: what both of their loops go through
            heard = _Heard()
            watch = _watch_async if hasattr(result, "__aiter__") else _watch
            result._iterator = watch(result._iterator, heard, lambda: _keep(recorder, asked, session, heard.whole()))
    except Exception:
        logger.exception("a completion wasn't captured")
    return result


def _watch(iterator: Any, heard: _Heard, done: Callable[[], None]) -> Iterator[Any]:
    for chunk in iterator:
        heard.hear(chunk)
        yield chunk
    done()


async def _watch_async(iterator: Any, heard: _Heard, done: Callable[[], None]) -> AsyncIterator[Any]:
    async for chunk in iterator:
        heard.hear(chunk)
        yield chunk
    done()


class _Heard:
    """The pieces of a streamed completion, put together again."""

    def __init__(self) -> None:
        self._about: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def hear(self, chunk: Any) -> None:
        """Take in a chunk; one that can't be understood is passed over, for the caller must get it all the same."""
        try:
            said = chunk.model_dump(exclude_none=True)
            for name in ("id", "model", "usage", "service_tier"):
                if said.get(name):
                    self._about[name] = said[name]
            for choice in said.get("choices") or ():
                self._hear_choice(choice)
        except Exception:
            logger.exception("a chunk wasn't understood")

    def _hear_choice(self, choice: Mapping[str, Any]) -> None:
        kept = self._choices.setdefault(
            choice.get("index", 0), {"message": {"role": "assistant"}, "calls": {}, "finish_reason": None}
        )
        delta = choice.get("delta") or {}
        for name in ("content", "refusal", "reasoning_content"):
            if isinstance(delta.get(name), str):
                kept["message"][name] = kept["message"].get(name, "") + delta[name]
        for piece in delta.get("tool_calls") or ():
            call = kept["calls"].setdefault(piece.get("index", 0), {"id": None, "name": "", "arguments": ""})
            function = piece.get("function") or {}
            call["id"] = piece.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
        kept["finish_reason"] = choice.get("finish_reason") or kept["finish_reason"]

    def whole(self) -> dict[str, Any]:
        """The completion as it would have come at once."""
        choices = []
        for index in sorted(self._choices):
            kept = self._choices[index]
            message = dict(kept["message"])
            calls = [
                {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
                for _, call in sorted(kept["calls"].items())
            ]
            if calls:
                message["tool_calls"] = calls
            choices.append({"index": index, "message": message, "finish_reason": kept["finish_reason"]})
        return {**self._about, "choices": choices}


def _keep(recorder: RemoteRecorder, asked: Mapping[str, Any], session: Session, said: Mapping[str, Any]) -> None:
    """Capture a completion, a record per choice."""
    try:
        model = said.get("model") or asked.get("model")
        messages = [_message(one) for one in asked["messages"]]
        tools = asked.get("tools")
        for choice in said.get("choices") or ():
            about = {
                "model": model,
                "response_id": said.get("id"),
                "finish_reason": choice.get("finish_reason"),
                "usage": said.get("usage"),
            }
            made: dict[str, Any] = {
                "messages": [*messages, _message(choice["message"])],
                "origin": f"model:{model}" if model else "model",
                "meta": {name: value for name, value in about.items() if value is not None},
            }
            if isinstance(tools, Iterable) and (listed := list(tools)):
                made["tools"] = listed
            _add(recorder, made, asked, session)
    except Exception:
        logger.exception("a completion wasn't captured")
