"""Which tokens are learnt, with real tokenizers and real templates."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.tiny_chat import MARKED, PLAIN, THINKING, WEATHER, call, make_tokenizer, say
from treering.errors import UsageError
from treering.training.chat.template import ChatTemplate, Rendered, parse_reply
from treering.training.conversation import Conversation, calls_json

TWO_TURNS = [*say("Where is my parcel?", "It is with the courier."), *say("Is it raining?", "Choose Ünïcode ☔.")]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {"marked": make_tokenizer(MARKED), "plain": make_tokenizer(PLAIN), "default": make_tokenizer(None)}


def learnt(tokenizer: Any, one: Rendered) -> str:
    return str(tokenizer.decode(one.ids[one.learn]))


@pytest.mark.parametrize("name", ["marked", "plain", "default"])
def test_what_is_learnt_is_what_the_assistant_said_and_its_end(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    (one,) = ChatTemplate(tokenizer).rendered(Conversation.of(TWO_TURNS))
    end = {"marked": "<|im_end|>", "plain": "<|im_end|>\n", "default": "<|im_end|>"}[name]
    assert learnt(tokenizer, one) == f"It is with the courier.{end}Choose Ünïcode ☔.{end}"
    whole = tokenizer.decode(one.ids)
    assert "Where is my parcel?" in whole
    assert "Is it raining?" in whole


def test_marks_and_prefixes_find_the_same_tokens(tokenizers: dict[str, Any]) -> None:
    conversation = Conversation.of(TWO_TURNS)
    (marked,), (plain,) = (ChatTemplate(tokenizers[name]).rendered(conversation) for name in ("marked", "plain"))
    assert marked.ids.tolist() == plain.ids.tolist()
    newline = tokenizers["plain"].encode("\n")
    only_plain = plain.ids[plain.learn & ~marked.learn].tolist()
    assert only_plain == newline * 2  # the line end after each reply isn't within the marks
    assert not (marked.learn & ~plain.learn).any()


def test_calls_of_tools_are_learnt_and_their_results_are_not(tokenizers: dict[str, Any]) -> None:
    for name in ("marked", "plain", "default"):
        (one,) = ChatTemplate(tokenizers[name]).rendered(Conversation.of(call("Paris"), [WEATHER]))
        text = learnt(tokenizers[name], one)
        assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>' in text
        assert "It is raining." in text
        assert "rain<" not in text


def test_the_default_template_offers_the_tools_and_is_named_as_such(tokenizers: dict[str, Any]) -> None:
    template = ChatTemplate(tokenizers["default"])
    assert template.is_default
    assert not ChatTemplate(tokenizers["marked"]).is_default
    asked = tokenizers["default"].decode(template.prompt(Conversation.of(call("Paris")[:1], [WEATHER])))
    assert "get_weather" in asked
    assert asked.endswith("<|assistant|>\n")


def test_a_prompt_is_what_stands_before_the_reply_that_is_learnt(tokenizers: dict[str, Any]) -> None:
    for name in ("marked", "plain", "default"):
        template = ChatTemplate(tokenizers[name])
        conversation = Conversation.of(TWO_TURNS)
        (one,) = template.rendered(conversation)
        asked = template.prompt(conversation.prompt())
        assert one.ids[: len(asked)].tolist() == asked.tolist()
        assert one.learn[len(asked)]


def test_where_earlier_replies_change_each_is_learnt_as_it_will_be_asked_for() -> None:
    tokenizer = make_tokenizer(THINKING)
    found = ChatTemplate(tokenizer).rendered(Conversation.of(TWO_TURNS))
    assert [learnt(tokenizer, one) for one in found] == [
        "<think></think>It is with the courier.<|im_end|>\n",
        "<think></think>Choose Ünïcode ☔.<|im_end|>\n",
    ]
    assert "<think>" not in tokenizer.decode(found[1].ids[~found[1].learn])


def test_a_reply_of_weight_0_is_read_and_not_learnt(tokenizers: dict[str, Any]) -> None:
    talk = [dict(message) for message in TWO_TURNS]
    talk[1]["weight"] = 0
    for name in ("marked", "plain", "default"):
        (one,) = ChatTemplate(tokenizers[name]).rendered(Conversation.of(talk))
        assert "courier" not in learnt(tokenizers[name], one)
        assert "courier" in tokenizers[name].decode(one.ids)
        assert "Ünïcode" in learnt(tokenizers[name], one)


def test_without_a_reply_there_is_nothing_to_learn(tokenizers: dict[str, Any]) -> None:
    assert ChatTemplate(tokenizers["marked"]).rendered(Conversation.of(TWO_TURNS[:1])) == []


def test_what_a_template_refuses_is_an_error_with_its_words() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        ChatTemplate(tokenizer).rendered(Conversation.of(TWO_TURNS))


def test_a_template_in_which_a_reply_changes_what_was_before_it_is_refused() -> None:
    tokenizer = make_tokenizer("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UsageError, match="can't be told"):
        ChatTemplate(tokenizer).rendered(Conversation.of(TWO_TURNS))


CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
AS_TEXT = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<tool_call>{AS_TEXT}</tool_call>", ""),
        (f"Let me look. <tool_call>\n{AS_TEXT}\n</tool_call>", "Let me look."),
        (f"[TOOL_CALLS][{AS_TEXT}]", ""),
        (AS_TEXT.replace("arguments", "parameters"), ""),
        (f"<|python_tag|>{AS_TEXT}", ""),
    ],
)
def test_calls_are_read_in_the_forms_that_models_write(text: str, content: str) -> None:
    message = parse_reply(text)
    assert message["content"] == content
    assert [one["function"] for one in message["tool_calls"]] == [CALL]


@pytest.mark.parametrize("text", ["Hello", "{not json", "<tool_call>nonsense</tool_call>", '{"name": "x"}', "[1]", ""])
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_reply(text) == {"role": "assistant", "content": text}


def test_a_conversation_is_read_from_json_structs_and_text_alike() -> None:
    structs = [{**message, "name": None, "tool_calls": message.get("tool_calls")} for message in call("Paris")]
    one = Conversation.of(structs, [WEATHER])
    assert Conversation.from_json(one.to_json()) == one
    stored = [dict(message) for message in call("Paris")]
    stored[1] = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}],
    }
    assert calls_json(Conversation.of(stored).messages[1]) == calls_json(one.messages[1])
    assert one.prompt().messages == one.messages[:3]
    assert one.reply_text() == "It is raining."


@pytest.mark.parametrize(
    "given", [[], "nonsense", [{"role": "robot"}], [{"content": "x"}], 7, [{"role": "user", "content": 3}]]
)
def test_what_is_no_conversation_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="not a conversation"):
        Conversation.of(given)


def test_arguments_that_are_no_json_are_kept_as_they_were_written() -> None:
    talk = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]},
    ]
    assert calls_json(Conversation.of(talk).messages[1]) == '[{"name":"f","arguments":"{oops"}]'
