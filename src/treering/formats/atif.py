"""Trajectories in Harbor's interchange format (ATIF, v1.0 to v1.8): one document a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Passed, Unfit, hashed_id
from treering.formats.chat import tool_call
from treering.formats.shapes import MisfitError, Turns, moment, named, tools_of, trace_record
from treering.schema.fields import dump_json

__all__ = ["Atif"]

COPIED = "copied steps"
EMPTY = "trajectories without steps of their own"
_ROLES = {"system": "system", "user": "user", "agent": "assistant"}


class Atif(Importer):
    """One record for each trajectory, and one for each trajectory of a subagent inside it."""

    name = "atif"
    makes = ("chat",)
    stands_alone = True

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """A document with ATIF's schema version and steps."""
        return (
            isinstance(value, dict)
            and isinstance(value.get("steps"), list)
            and str(value.get("schema_version")).startswith("ATIF")
        )

    @property
    def remembers(self) -> bool:
        """No: each document stands for itself."""
        return False

    def pass_over(self, text: bytes) -> None:
        """Nothing to know: ids are made of what a trajectory says of itself."""

    def feed(self, line: int, value: Any, text: bytes) -> Iterator[Outcome]:
        """As `Importer.feed`."""
        yield from self._trajectory(line, value, None, ())

    def _trajectory(self, line: int, value: Any, parent: str | None, loc: tuple[str | int, ...]) -> Iterator[Outcome]:
        if not isinstance(value, dict) or not isinstance(value.get("steps"), list):
            problem = Problem(loc, "missing-field", "expected a trajectory with steps")
            yield Unfit(line, (problem,), value)
            return
        session = named(value.get("session_id")) or parent or named(value.get("trajectory_id"))
        try:
            found = self._record(line, value, session, loc)
        except MisfitError as exc:
            yield Unfit(line, (exc.problem,), value)
        else:
            copied = sum(isinstance(step, dict) and step.get("is_copied_context") is True for step in value["steps"])
            yield from (Passed(line, COPIED) for _ in range(copied))
            yield found if found is not None else Passed(line, EMPTY)
        inside = value.get("subagent_trajectories")
        for position, one in enumerate(inside if isinstance(inside, list) else ()):
            yield from self._trajectory(line, one, session, (*loc, "subagent_trajectories", position))

    def _record(
        self, line: int, value: Mapping[str, Any], session: str | None, loc: tuple[str | int, ...]
    ) -> Found | None:
        agent = value.get("agent")
        agent = agent if isinstance(agent, dict) else {}
        turns = Turns()
        model, last, step_id = named(agent.get("model_name")), None, 0
        for position, step in enumerate(value["steps"]):
            here = (*loc, "steps", position)
            if not isinstance(step, dict):
                raise MisfitError(here, "wrong-type", "expected a step, got something else")
            if step.get("is_copied_context") is True:
                continue
            model = named(step.get("model_name")) or model
            given = step.get("step_id")
            step_id = given if isinstance(given, int) else position + 1
            last = _later(last, moment(step.get("timestamp"), (*here, "timestamp")))
            _step(turns, step, here)
        messages = turns.done()
        if not messages:
            return None
        trajectory = named(value.get("trajectory_id"))
        names: list[str | int] = [session or "", trajectory or "", str(agent.get("name")), step_id]
        if trajectory is None:  # sibling segments may share a session: then what they say tells them apart
            names.append(dump_json(messages))
        record = trace_record(
            turns,
            id=hashed_id("atif", *names),
            model=model,
            tools=tools_of(agent.get("tool_definitions")),
            session_id=session,
            ts=last,
            meta={
                "format": "atif",
                "schema_version": named(value.get("schema_version")),
                "trajectory_id": trajectory,
                "agent": named(agent.get("name")),
                "agent_version": named(agent.get("version")),
                "usage": _usage(value.get("final_metrics")),
                "notes": named(value.get("notes")),
                "continued_in": named(value.get("continued_trajectory_ref")),
                "is_subagent": True if loc else None,
                "extra": value.get("extra") if isinstance(value.get("extra"), dict) else None,
            },
        )
        return Found(record, line)


def _step(turns: Turns, step: Mapping[str, Any], loc: tuple[str | int, ...]) -> None:
    role = _ROLES.get(named(step.get("source")) or "")
    if role is None:
        raise MisfitError(
            (*loc, "source"), "bad-value", f"expected system, user or agent, got {step.get('source')!r:.80}"
        )
    text = turns.text_of(step.get("message"))
    calls: list[dict[str, Any]] = []
    given = step.get("tool_calls")
    for position, call in enumerate(given if isinstance(given, list) else ()):
        name = named(call.get("function_name")) if isinstance(call, dict) else None
        if name is None:
            where = (*loc, "tool_calls", position, "function_name")
            raise MisfitError(where, "missing-field", "expected the name of the tool, got none")
        calls.append(tool_call(name, call.get("arguments"), named(call.get("tool_call_id"))))
    before = len(turns.messages)
    turns.say(
        role, text if text or role != "assistant" else None, reasoning=named(step.get("reasoning_content")), calls=calls
    )
    if step.get("llm_call_count") == 0:
        for one in turns.messages[before:]:
            one["weight"] = 0  # dispatched without asking the model: nothing to learn from
    observation = step.get("observation")
    results = observation.get("results") if isinstance(observation, dict) else None
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict):
            raise MisfitError((*loc, "observation", "results"), "wrong-type", "expected a result, got something else")
        content = turns.text_of(result.get("content"))
        if result.get("content") is None and result.get("subagent_trajectory_ref"):
            content = "[result of a subagent]"
        call_id = named(result.get("source_call_id"))
        if call_id is None and len(calls) == 1:
            call_id = calls[0].get("id")
        if call_id is not None:
            turns.result(content, call_id)
        elif content:  # what the environment says of its own accord reaches the model as a user's message
            turns.say("user", content)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return other if one is None or (other is not None and other > one) else one


def _usage(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    names = {
        "total_prompt_tokens": "input_tokens", "total_completion_tokens": "output_tokens",
        "total_cached_tokens": "cache_read_tokens", "total_cost_usd": "cost_usd",
    }  # fmt: skip
    return {ours: value[name] for name, ours in names.items() if value.get(name) is not None} or None
