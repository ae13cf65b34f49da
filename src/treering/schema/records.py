"""The built-in record types as pydantic models: what a captured record is.

Strict throughout: nothing is coerced (no 1.7 → 1, no "12" → 12) and no unknown field passes. Own record types
subclass `Record` and add their payload.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from treering.schema.fields import Arguments, Int32, JsonArray, JsonObject, Origin, Split, Timestamp

__all__ = ["BUILT_IN", "Chat", "FunctionCall", "Labelled", "Message", "Preference", "Record", "Tokens", "ToolCall"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Record(_Strict):
    """The fields every record has. All optional at capture: what is missing is filled in or stays null."""

    id: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None,
        description="The caller's id, unique in the corpus; a fresh one when missing. Sent twice, stored once.",
    )
    session_id: str | None = Field(
        default=None, description="The conversation it belongs to; a session never straddles splits."
    )
    subject: str | None = Field(default=None, description="Whom the record is about; what `erase` takes.")
    domain: str | None = Field(default=None, description="Product area or task; evaluation pools by it.")
    ts: Timestamp | None = Field(default=None, description="When it happened; the time of capture when missing.")
    split: Split | None = Field(default=None, description="`train` or `heldout`; drawn by a keyed hash when missing.")
    origin: Origin | None = Field(default=None, description="`human`, `model` or `synthetic`, optionally `:by what`.")
    meta: JsonObject | None = Field(default=None, description="A JSON object of the caller's own.")


class FunctionCall(_Strict):
    """Name and arguments of a called tool."""

    name: str
    arguments: Arguments


class ToolCall(_Strict):
    """One call of a tool by the assistant."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class Message(_Strict):
    """One message of a conversation, in the shape OpenAI and TRL files share."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    weight: Int32 | None = None


Messages = Annotated[list[Message], Field(min_length=1)]


class Chat(Record):
    """A conversation: messages with roles, tool calls, and the tools that were on offer."""

    messages: Messages
    tools: JsonArray | None = None


class Labelled(Record):
    """A text and its label."""

    text: str
    label: str


class Preference(Record):
    """A prompt with a chosen and a rejected continuation, each a list of messages."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: JsonArray | None = None


class Tokens(Record):
    """A sequence of token ids, int32, of any length ≥ 1."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


BUILT_IN: dict[str, type[Record]] = {"chat": Chat, "labelled": Labelled, "preference": Preference, "tokens": Tokens}
