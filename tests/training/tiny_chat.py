"""Very small causal language models with random weights: real layers, a real tokenizer trained here, milliseconds a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Marks what the assistant says, as templates made for training do.
MARKED = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}{{- message.content + '<|im_end|>' -}}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# The same text without marks: replies follow from rendering prefixes.
PLAIN = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
# As Qwen3's: a thought is shown with the last reply alone.
THINKING = PLAIN.replace(
    "{{- message.content -}}\n{%- for",
    "{%- if loop.last -%}{{- '<think></think>' -}}{%- endif -%}{{- message.content -}}\n{%- for",
)

TEXTS = [
    "How do I change my password? Open the settings and choose a new one.",
    "Where is my parcel? It is with the courier and comes tomorrow.",
    "What is the weather in Paris? Is it raining in London today?",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
    "<tool_call> user assistant system tool </tool_call>",
]
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def make_tokenizer(template: str | None = MARKED) -> Any:
    """A byte-level BPE trained on a few lines; the special tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2])
    fast.chat_template = template
    return fast


def make_chat_base(folder: Path, *, template: str | None = MARKED, seed: int = 0, kind: str = "llama") -> str:
    """Write the base into `folder`; its path. kind: "llama", "gpt2", or "mamba", which can't pack."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        MambaConfig,
    )

    tokenizer = make_tokenizer(template)
    tokenizer.save_pretrained(folder)
    ids: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config: Any
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.2,
            **ids,
        )
    elif kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.2, **ids)
    else:
        config = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def say(user: str, assistant: str) -> list[dict[str, Any]]:
    """A question and its answer."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def call(city: str) -> list[dict[str, Any]]:
    """A question that is answered by a tool call, its result, and the answer."""
    made = [{"function": {"name": "get_weather", "arguments": {"city": city}}}]
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "content": None, "tool_calls": made},
        {"role": "tool", "content": "rain", "name": "get_weather"},
        {"role": "assistant", "content": "It is raining."},
    ]
