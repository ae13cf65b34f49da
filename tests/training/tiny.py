"""A very small BERT with random weights: real layers, real tokenizer, milliseconds a batch."""

from __future__ import annotations

import string
from pathlib import Path

WIDTH, LAYERS = 32, 3
TOPICS = {
    "billing": ("bill", "invoice", "refund", "charge"),
    "shipping": ("parcel", "courier", "delivery", "address"),
    "account": ("password", "login", "email", "profile"),
    "returns": ("return", "label", "warranty", "broken"),
}


def make_base(folder: Path, *, seed: int = 0) -> str:
    """Write the base into `folder`; its path."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    signs = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *signs, *(f"##{sign}" for sign in signs)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return str(folder)


def records(topic: str, n: int = 40) -> list[dict[str, str]]:
    """Labelled records of one domain with two classes: the topic's first two words, or its last two."""
    words = TOPICS[topic]
    made = []
    for number in range(n):
        word = words[number % 4]
        label = f"{topic}-{'a' if number % 4 < 2 else 'b'}"
        made.append({"text": f"{word} {word} {number}", "label": label, "domain": topic})
    return made


def batches(rows: list[dict[str, str]], size: int = 16) -> list[dict[str, list[str]]]:
    """The rows as a loader would give them."""
    return [
        {name: [row[name] for row in rows[k : k + size]] for name in ("text", "label", "domain")}
        for k in range(0, len(rows), size)
    ]
