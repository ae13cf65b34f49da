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
_TOKENS = (
    ("input_tokens", "input_tokens"), ("output_tokens", "output_tokens"),
    ("cache_read_input_tokens", "cache_read_tokens"), ("cache_creation_input_tokens", "cache_write_tokens"),
)  # fmt: skip


@dataclass(slots=True, eq=False)
class _Line:
    """A line that others may hang on."""

    uuid: str
    parent: str | None
    number: int
    value: Mapping[str, Any] | None = None  # of a line that may be its branch's last
    unit: _Unit | None = None
    is_summary: bool = False  # of what a compaction closed
    # Of the user's:
    content: Any = None
    blocks: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)  # the calls whose results it brings


@dataclass(slots=True, eq=False)
class _Unit:
    """One turn: what the user said, all lines of one answer, or all results of an answer's calls."""

    kind: str  # "user", "assistant" or "results"
    lines: list[_Line] = field(default_factory=list)
    parent: _Unit | None = None
    children: list[_Unit] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # what the API said instead of going on
    is_answered: bool = False  # an answer stands here or further on
    blocks: list[Mapping[str, Any]] = field(default_factory=list)  # of an answer, or of results
    calls: list[str] = field(default_factory=list)  # that the blocks ask for
    # Of an answer:
    results: _Unit | None = None  # of its calls
    model: str | None = None
    finish_reason: str | None = None
    usage: Any = None

    def add(self, line: _Line, blocks: list[Mapping[str, Any]]) -> None:
        """Add a line; its blocks each once: an answer is written a block a line, and some versions write one again."""
        self.lines.append(line)
        line.unit = self
        for block in blocks:
            if block not in self.blocks:
                self.blocks.append(block)
                if block.get("type") == "tool_use" and block.get("id"):
                    self.calls.append(str(block["id"]))


class ClaudeCode(Importer):
    """One record for each answered branch of a session, each subagent's run, and each window that a compaction began."""

    name = "claude-code"
    makes = ("chat",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._lines: dict[str, _Line] = {}
        self._answers: dict[tuple[str, str], _Unit] = {}  # by their session and their own id
        self._said: list[_Line] = []  # lines of the user
        self._errors: list[tuple[_Line, str]] = []  # what the API said instead of an answer
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
        """What becomes of a line that nothing will come of.

        What is needed of the others is taken at once: until the session has ended, a parsed line has left the processor's caches.
        """
        kind = value["type"]
        is_message = kind == "user" or kind == "assistant"
        if is_message and not isinstance(value.get("message"), dict):
            return Unfit(line, (Problem(("message",), "missing-field", "expected a message, got none"),), value)
        if kind in _TITLES:
            about = named(value.get("leafUuid")) or session
            told = named(value.get(_TITLES[kind])) or named(value.get("title"))
            if about is not None and told is not None:
                self._titles[about] = told
            return Passed(line, TITLES)
        uuid = named(value.get("uuid"))
        if uuid is None:
            if is_message:
                problem = Problem(("uuid",), "missing-field", "expected the uuid of a message, got none")
                return Unfit(line, (problem,), value)
            return Passed(line, EVENTS)
        if uuid in self._lines:
            return Passed(line, TWICE)
        held = self._lines[uuid] = _Line(uuid, named(value.get("parentUuid")), line)
        self._size += size
        if kind == "assistant":
            return self._answer(held, value)
        if kind == "user":
            self._hear(held, value, value["message"].get("content"))
        elif kind == "attachment" and (prompt := _meanwhile(value)):
            self._hear(held, value, prompt)
        else:
            return Passed(line, EVENTS)
        return None

    def _answer(self, line: _Line, value: Mapping[str, Any]) -> Passed | None:
        """Hold a line of an answer."""
        message = value["message"]
        is_error = value.get("isApiErrorMessage") is True
        blocks = _blocks(message.get("content"))
        if is_error or message.get("model") == "<synthetic>":
            if is_error:
                told = " ".join(str(one.get("text")) for one in blocks if one.get("type") == "text")
                self._errors.append((line, told or "unknown"))
            return Passed(line.number, ERRORS)
        key = (str(value.get("sessionId")), named(message.get("id")) or line.uuid)
        unit = self._answers.get(key)
        if unit is None:
            unit = self._answers[key] = _Unit("assistant")
        else:
            unit.lines[-1].value = None
        line.value, line.is_summary = value, value.get("isCompactSummary") is True
        unit.add(line, blocks)
        unit.model, unit.finish_reason = named(message.get("model")), named(message.get("stop_reason"))
        unit.usage = message.get("usage")
        return None

    def _hear(self, line: _Line, value: Mapping[str, Any], content: Any) -> None:
        """Hold a line of the user's."""
        line.value, line.is_summary = value, value.get("isCompactSummary") is True
        line.content = content
        if not isinstance(content, str):
            line.blocks = _blocks(content)
            line.results = [str(one.get("tool_use_id")) for one in line.blocks if one.get("type") == "tool_result"]
        self._said.append(line)

    def finish(self) -> Iterator[Outcome]:
        """The records of all lines that are held."""
        units = self._units()
        for root in units:
            if root.parent is None:
                yield from self._given(root)
        # They hold one another: Python would find them only where it looks for garbage, which it seldom does meanwhile.
        for line in self._lines.values():
            line.unit = None
        for unit in units:
            unit.parent = unit.results = None
        self._lines, self._answers, self._said, self._errors = {}, {}, [], []
        self._titles, self._size = {}, 0

    def _units(self) -> list[_Unit]:
        """All turns in the order of the file, linked to trees."""
        lines = self._lines
        units = list(self._answers.values())
        for line in self._said:
            if line.results:
                above = _above(lines, line)
                asked = above.parent if above is not None and above.kind == "results" else above
                if asked is not None and asked.kind == "assistant" and set(asked.calls).issuperset(line.results):
                    # Results of calls made at once hang on different lines of the answer: that is no branch.
                    if asked.results is None:
                        asked.results = _Unit("results", parent=asked)
                        units.append(asked.results)
                    asked.results.add(line, line.blocks)
                    continue
            line.unit = _Unit("user", [line])
            units.append(line.unit)
        for unit in units:
            if unit.kind != "results":
                for line in unit.lines:
                    above = _above(lines, line)
                    if above is not None and above is not unit and above is not unit.results:
                        unit.parent = above
                        break
                if unit.parent is not None and unit.parent.results is not None:
                    unit.parent = unit.parent.results if _after_results(unit, unit.parent) else unit.parent
        _break_circles(units)
        units.sort(key=lambda unit: unit.lines[0].number)
        for unit in units:
            if unit.parent is not None:
                unit.parent.children.append(unit)
        for unit in units:
            at: _Unit | None = unit if unit.kind == "assistant" else None
            while at is not None and not at.is_answered:
                at.is_answered = True
                at = at.parent
        for line, told in self._errors:  # what the API said belongs to where it was asked
            if (above := _above(lines, line)) is not None:
                above.errors.append(told)
        return units

    def _given(self, root: _Unit) -> Iterator[Outcome]:
        if not root.is_answered:
            yield Passed(root.lines[0].number, UNANSWERED)
            return
        stack = [root]
        while stack:
            unit = stack.pop()
            if not unit.children:
                yield self._record(unit)
                continue
            kept = unit.children
            if len(kept) > 1:
                kept = [one for one in unit.children if one.is_answered]
                kept = kept or unit.children[-1:]  # the newest of what waits for its answer
                for one in unit.children:
                    if one not in kept:
                        yield Passed(one.lines[0].number, UNANSWERED)
            stack += reversed(kept)

    def _record(self, leaf: _Unit) -> Found | Unfit:
        path: list[_Unit] = []
        at: _Unit | None = leaf
        while at is not None:
            path.append(at)
            at = at.parent
        path.reverse()
        turns = Turns()
        last = leaf.lines[-1]
        assert last.value is not None
        value = last.value
        try:
            for unit in path:
                _say(turns, unit)
            if not turns.messages:
                problem = Problem((), "bad-value", "expected a branch that says something")
                return Unfit(last.number, (problem,), dict(value))
            when = moment(value.get("timestamp"), ("timestamp",))
        except MisfitError as exc:
            return Unfit(last.number, (exc.problem,), dict(value))
        session = named(value.get("sessionId"))
        answers = [unit for unit in path if unit.kind == "assistant"]
        titles = self._titles
        title = next((titles[line.uuid] for unit in path for line in unit.lines if line.uuid in titles), None)
        record = trace_record(
            turns,
            id=hashed_id("claude-code", session or "", last.uuid),
            model=next((unit.model for unit in reversed(answers) if unit.model), None),
            session_id=session,
            ts=when,
            meta={
                "format": "claude-code",
                "agent": "claude-code",
                "version": named(value.get("version")),
                "title": title or titles.get(session or ""),
                "cwd": named(value.get("cwd")),
                "git_branch": named(value.get("gitBranch")),
                "is_subagent": True if value.get("isSidechain") is True else None,
                "agent_id": named(value.get("agentId")),
                "is_compacted": True if path[0].lines[0].is_summary else None,
                "finish_reason": answers[-1].finish_reason if answers else None,
                "usage": _usage(answers),
            },
        )
        outcome: dict[str, Any] = {}
        if leaf.errors:
            outcome = {"status": "error", "error": leaf.errors[-1]}
        elif leaf.kind == "user" and str(turns.messages[-1].get("content")).startswith("[Request interrupted by user"):
            outcome = {"status": "interrupted"}
        return Found(record, last.number, ({"outcome": outcome},) if outcome else ())


def _meanwhile(value: Mapping[str, Any]) -> Any:
    """What was said while the agent worked."""
    inside = value.get("attachment")
    return inside.get("prompt") if isinstance(inside, dict) and inside.get("type") == "queued_command" else None


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        return []
    return [
        {"type": "text", "text": one} if isinstance(one, str) else one for one in content if isinstance(one, str | dict)
    ]


def _after_results(unit: _Unit, above: _Unit) -> bool:
    """Whether a turn that hangs on an answer came after the results of its calls, and so has seen them."""
    assert above.results is not None
    return unit.lines[0].number > above.results.lines[0].number


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
    fine: set[_Unit] = set()
    for unit in units:
        path: set[_Unit] = set()
        at: _Unit | None = unit
        while at is not None and at not in fine:
            if at in path:
                # Results stay with their answer, without which they say nothing.
                cut = at.parent if at.kind == "results" and at.parent is not None else at
                cut.parent = None
                break
            path.add(at)
            at = at.parent
        fine |= path


def _say(turns: Turns, unit: _Unit) -> None:
    if unit.kind == "assistant":
        turns.parts("assistant", unit.blocks)
        return
    if unit.kind == "user":
        turns.add({"role": "user", "content": unit.lines[0].content}, ("message",))
        return
    assert unit.parent is not None
    results = {str(one.get("tool_use_id")): one for one in unit.blocks if one.get("type") == "tool_result"}
    for call in unit.parent.calls:
        if call in results:
            block = results[call]
            failed = block.get("is_error") is True
            turns.result(turns.text_of(block.get("content")), named(block.get("tool_use_id")), failed=failed)
    rest = [one for one in unit.blocks if one.get("type") != "tool_result"]
    if rest:
        turns.add({"role": "user", "content": rest})


def _usage(answers: list[_Unit]) -> dict[str, int] | None:
    """Tokens of all answers; each line of an answer repeats its usage, so one line counts."""
    total: dict[str, int] = {}
    for unit in answers:
        if isinstance(usage := unit.usage, dict):
            for name, ours in _TOKENS:
                if isinstance(count := usage.get(name), int):
                    total[ours] = total.get(ours, 0) + count
    return {"calls": len(answers), **total} if total else None
