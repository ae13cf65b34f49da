"""Transcripts of Claude Code: `~/.claude/projects/<dir>/<session>.jsonl`, one message or event a line.

Lines are linked by `parentUuid`, so a file is a tree: whoever rewinds makes a branch. One record is made for each branch
that was answered, of what the model saw on it. Its makers call the form internal, so unknown lines are passed over by kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Passed, Unfit, hashed_id
from treering.formats.shapes import MisfitError, Turns, moment, named, trace_record
from treering.schema import RecordType

__all__ = ["ClaudeCode"]

#: Bytes of lines after which sessions that have ended are given; one session is always held whole. Transcripts are a file a
#: session: this is for those that were put together, and small because parsed lines take ten times as much.
HELD_BYTES = 4 << 20

EVENTS = "lines about other things"
TITLES = "titles and summaries"
TWICE = "lines that stand twice"
UNANSWERED = "branches without an answer"
ERRORS = "errors of the API, kept as outcomes"

_TITLES = {"summary": "summary", "ai-title": "aiTitle", "custom-title": "customTitle"}


@dataclass(slots=True)
class _Line:
    """A line that others may hang on."""

    number: int
    value: Mapping[str, Any]
    parent: str | None
    speaker: str | None  # who speaks in it, as the model saw it
    unit: _Unit | None = None


@dataclass(slots=True)
class _Unit:
    """One turn: what the user said, all lines of one answer, or all results of an answer's calls."""

    kind: str  # "user", "assistant" or "results"
    lines: list[tuple[str, _Line]] = field(default_factory=list)  # with their uuids
    parent: _Unit | None = None
    children: list[_Unit] = field(default_factory=list)
    results: _Unit | None = None  # of an answer's calls
    errors: list[str] = field(default_factory=list)  # what the API said instead of going on
    is_answered: bool = False  # an answer stands here or further on
    found: tuple[int, list[Mapping[str, Any]]] = (0, [])  # the blocks of so many lines

    @property
    def calls(self) -> list[str]:
        return [str(block["id"]) for block in self.blocks() if block.get("type") == "tool_use" and block.get("id")]

    def blocks(self) -> list[Mapping[str, Any]]:
        """Blocks of all lines, each once: an answer is written a block a line, and some versions write one again."""
        if self.found[0] != len(self.lines):
            found: list[Mapping[str, Any]] = []
            for _, line in self.lines:
                for block in _blocks(line.value):
                    if block not in found:
                        found.append(block)
            self.found = len(self.lines), found
        return self.found[1]


class ClaudeCode(Importer):
    """One record for each answered branch of a session, each subagent's run, and each window that a compaction began."""

    name = "claude-code"
    makes = ("chat",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._lines: dict[str, _Line] = {}
        self._titles: dict[str, str] = {}  # by the uuid of a leaf, or the id of a session
        self._session: str | None = None
        self._size = 0

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """A line of a session (most have its id), a summary, or a snapshot of files: any may come first."""
        if not isinstance(value, dict) or not isinstance(value.get("type"), str) or "payload" in value:
            return False
        if isinstance(value.get("sessionId"), str):  # Langfuse's observations have one, too, and an `id` of their own
            return "id" not in value
        return ("leafUuid" in value and "summary" in value) or ("messageId" in value and "snapshot" in value)

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """As `Importer.feed`. Everything is held until the session has ended: a later line may continue any earlier one."""
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            problem = Problem(("type",), "missing-field", "expected a line of a transcript, with its type")
            return (Unfit(line, (problem,), value),)
        session = named(value.get("sessionId"))
        ended: Iterable[Outcome] = ()
        if self._size > HELD_BYTES and session is not None and session != self._session:
            goes_on = named(value.get("parentUuid")) in self._lines  # a session that was resumed may have another id
            ended = () if goes_on else tuple(self.finish())
        self._session = session or self._session
        if (outcome := self._hold(line, value, len(text), session)) is not None:
            return (*ended, outcome)
        return ended

    def _hold(self, line: int, value: Mapping[str, Any], size: int, session: str | None) -> Outcome | None:
        """What becomes of a line that nothing will come of."""
        kind = value["type"]
        if kind in _TITLES:
            about = named(value.get("leafUuid")) or session
            told = named(value.get(_TITLES[kind])) or named(value.get("title"))
            if about is not None and told is not None:
                self._titles[about] = told
            return Passed(line, TITLES)
        uuid = named(value.get("uuid"))
        if kind in ("user", "assistant") and not isinstance(value.get("message"), dict):
            return Unfit(line, (Problem(("message",), "missing-field", "expected a message, got none"),), value)
        if uuid is None:
            if kind in ("user", "assistant"):
                problem = Problem(("uuid",), "missing-field", "expected the uuid of a message, got none")
                return Unfit(line, (problem,), value)
            return Passed(line, EVENTS)
        if uuid in self._lines:
            return Passed(line, TWICE)
        speaker = _speaker(value)
        self._lines[uuid] = _Line(line, value, named(value.get("parentUuid")), speaker)
        self._size += size
        if speaker is None:
            return Passed(line, ERRORS if kind == "assistant" else EVENTS)
        return None

    def finish(self) -> Iterator[Outcome]:
        """The records of all lines that are held."""
        for root in _units(self._lines):
            yield from self._given(root)
        self._lines, self._titles, self._size = {}, {}, 0

    def _given(self, root: _Unit) -> Iterator[Outcome]:
        if not root.is_answered:
            yield Passed(root.lines[0][1].number, UNANSWERED)
            return
        stack = [root]
        while stack:
            unit = stack.pop()
            if not unit.children:
                yield self._record(unit)
                continue
            answered = [one for one in unit.children if one.is_answered]
            kept = answered or unit.children[-1:]  # the newest of what waits for its answer
            for one in unit.children:
                if one not in kept:
                    yield Passed(one.lines[0][1].number, UNANSWERED)
            stack += reversed(kept)

    def _record(self, leaf: _Unit) -> Found | Unfit:
        path: list[_Unit] = []
        at: _Unit | None = leaf
        while at is not None:
            path.append(at)
            at = at.parent
        path.reverse()
        turns = Turns()
        last_uuid, last = leaf.lines[-1]
        try:
            for unit in path:
                _say(turns, unit)
            if not turns.done():
                return Unfit(
                    last.number, (Problem((), "bad-value", "expected a branch that says something"),), dict(last.value)
                )
            when = moment(last.value.get("timestamp"), ("timestamp",))
        except MisfitError as exc:
            return Unfit(last.number, (exc.problem,), dict(last.value))
        session = named(last.value.get("sessionId"))
        answers = [unit.lines[-1][1].value for unit in path if unit.kind == "assistant"]
        model = next((found for one in reversed(answers) if (found := named(one["message"].get("model")))), None)
        title = next((self._titles[uuid] for unit in path for uuid, _ in unit.lines if uuid in self._titles), None)
        record = trace_record(
            turns,
            id=hashed_id("claude-code", session or "", last_uuid),
            model=model,
            session_id=session,
            ts=when,
            meta={
                "format": "claude-code",
                "agent": "claude-code",
                "version": named(last.value.get("version")),
                "title": title or self._titles.get(session or ""),
                "cwd": named(last.value.get("cwd")),
                "git_branch": named(last.value.get("gitBranch")),
                "is_subagent": True if last.value.get("isSidechain") is True else None,
                "agent_id": named(last.value.get("agentId")),
                "is_compacted": True if path[0].lines[0][1].value.get("isCompactSummary") is True else None,
                "finish_reason": named(answers[-1]["message"].get("stop_reason")) if answers else None,
                "usage": _usage(answers),
            },
        )
        outcome: dict[str, Any] = {}
        if leaf.errors:
            outcome = {"status": "error", "error": leaf.errors[-1]}
        elif leaf.kind == "user" and str(turns.messages[-1].get("content")).startswith("[Request interrupted by user"):
            outcome = {"status": "interrupted"}
        return Found(record, last.number, ({"outcome": outcome},) if outcome else ())


def _speaker(value: Mapping[str, Any]) -> str | None:
    """Who speaks in a line that the model saw or wrote; None for the others."""
    kind = value.get("type")
    if kind == "assistant":
        written = value.get("isApiErrorMessage") is not True and value["message"].get("model") != "<synthetic>"
        return "assistant" if written else None
    if kind == "user":
        return "user"
    inside = value.get("attachment")
    if kind == "attachment" and isinstance(inside, dict) and inside.get("type") == "queued_command":
        return "user" if inside.get("prompt") else None  # what was said while the agent worked
    return None


def _content(value: Mapping[str, Any]) -> Any:
    return value["attachment"]["prompt"] if value.get("type") == "attachment" else value["message"].get("content")


def _blocks(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = _content(value)
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        return []
    return [
        {"type": "text", "text": one} if isinstance(one, str) else one for one in content if isinstance(one, str | dict)
    ]


def _answers_to(value: Mapping[str, Any]) -> list[str]:
    """The calls whose results a user's line brings."""
    return [str(one.get("tool_use_id")) for one in _blocks(value) if one.get("type") == "tool_result"]


def _units(lines: dict[str, _Line]) -> list[_Unit]:
    """The turns of lines, linked to trees; their roots in the order of the file."""
    units: list[_Unit] = []
    answers: dict[tuple[str, str], _Unit] = {}
    for uuid, line in lines.items():  # first who belongs together: one answer is written as several lines
        if line.speaker != "assistant":
            continue
        message = named(line.value["message"].get("id"))
        key = (str(line.value.get("sessionId")), message or uuid)
        unit = answers.get(key)
        if unit is None:
            unit = answers[key] = _Unit("assistant")
            units.append(unit)
        unit.lines.append((uuid, line))
        line.unit = unit
    calls = {id(unit): set(unit.calls) for unit in units}
    for uuid, line in lines.items():
        if line.speaker != "user":
            continue
        above = _above(lines, line)
        asked = (
            above if above is None or above.kind == "assistant" else above.parent if above.kind == "results" else None
        )
        results = _answers_to(line.value)
        if asked is not None and results and calls[id(asked)].issuperset(results):
            # Results of calls made at once hang on different lines of the answer: that is no branch.
            if asked.results is None:
                asked.results = _Unit("results", parent=asked)
                units.append(asked.results)
            asked.results.lines.append((uuid, line))
            line.unit = asked.results
        else:
            line.unit = _Unit("user", [(uuid, line)])
            units.append(line.unit)
    for unit in units:
        if unit.kind != "results":
            for _, line in unit.lines:
                above = _above(lines, line)
                if above is not None and above is not unit and above is not unit.results:
                    unit.parent = above
                    break
            if unit.parent is not None and unit.parent.results is not None:
                unit.parent = unit.parent.results if _after_results(unit, unit.parent) else unit.parent
    _break_circles(units)
    units.sort(key=lambda unit: unit.lines[0][1].number)
    for unit in units:
        if unit.parent is not None:
            unit.parent.children.append(unit)
    for unit in units:
        at: _Unit | None = unit if unit.kind == "assistant" else None
        while at is not None and not at.is_answered:
            at.is_answered = True
            at = at.parent
    for line in lines.values():  # what the API said instead of an answer belongs to where it was asked
        if line.speaker is not None or line.value.get("isApiErrorMessage") is not True:
            continue
        if line.value.get("type") == "assistant" and (above := _above(lines, line)) is not None:
            told = " ".join(str(one.get("text")) for one in _blocks(line.value) if one.get("type") == "text")
            above.errors.append(told or "unknown")
    return [unit for unit in units if unit.parent is None]


def _after_results(unit: _Unit, above: _Unit) -> bool:
    """Whether a turn that hangs on an answer came after the results of its calls, and so has seen them."""
    assert above.results is not None
    return unit.lines[0][1].number > above.results.lines[0][1].number


def _above(lines: dict[str, _Line], line: _Line) -> _Unit | None:
    """The turn that a line goes on from, past lines that say nothing."""
    at = line.parent
    if at is None or (parent := lines.get(at)) is None:
        return None
    if parent.unit is not None:
        return parent.unit
    seen: set[str] = set()
    while at is not None and at in lines and at not in seen:
        seen.add(at)
        if lines[at].unit is not None:
            return lines[at].unit
        at = lines[at].parent
    return None


def _break_circles(units: list[_Unit]) -> None:
    """No turn goes on from itself: a circle, which only a damaged file has, is cut where it is first seen."""
    fine: set[int] = set()
    for unit in units:
        path: list[_Unit] = []
        on_path: set[int] = set()
        at: _Unit | None = unit
        while at is not None and id(at) not in fine:
            if id(at) in on_path:
                at.parent = None
                break
            path.append(at)
            on_path.add(id(at))
            at = at.parent
        fine.update(map(id, path))


def _say(turns: Turns, unit: _Unit) -> None:
    if unit.kind == "assistant":
        turns.parts("assistant", [*unit.blocks()])
        return
    if unit.kind == "user":
        value = unit.lines[0][1].value
        turns.add({"role": "user", "content": _content(value)}, ("message",))
        return
    assert unit.parent is not None
    results = {str(one.get("tool_use_id")): one for one in unit.blocks() if one.get("type") == "tool_result"}
    for call in unit.parent.calls:
        if call in results:
            block = results[call]
            failed = block.get("is_error") is True
            turns.result(turns.text_of(block.get("content")), named(block.get("tool_use_id")), failed=failed)
    rest = [one for one in unit.blocks() if one.get("type") != "tool_result"]
    if rest:
        turns.add({"role": "user", "content": rest})


def _usage(answers: list[Mapping[str, Any]]) -> dict[str, int] | None:
    """Tokens of all answers; each line of an answer repeats its usage, so one line counts."""
    names = {
        "input_tokens": "input_tokens", "output_tokens": "output_tokens",
        "cache_read_input_tokens": "cache_read_tokens", "cache_creation_input_tokens": "cache_write_tokens",
    }  # fmt: skip
    total: dict[str, int] = {}
    for one in answers:
        usage = one["message"].get("usage")
        for name, ours in names.items() if isinstance(usage, dict) else ():
            if isinstance(usage.get(name), int):
                total[ours] = total.get(ours, 0) + usage[name]
    return {"calls": len(answers), **total} if total else None
