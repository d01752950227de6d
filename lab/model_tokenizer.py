"""The tokenizer of the lab's tiny models: byte-level BPE, and ways in which it can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS = 0, 1

_CORPUS = (
    "Hello world, this is a tiny model used to test deployments.",
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "user assistant system prompt answer question model server health",
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_REPEATED = 50  # merges are learned from what is frequent


def train_tokenizer(vocab: int, learned: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of at most `vocab` tokens that has whole words for what is `learned`.

    The same input gives the same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentences = (*_CORPUS, *learned)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences * _REPEATED, trainer)
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Write a tokenizer's three files."""
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    settings = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(number): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, content in enumerate(SPECIALS)
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def token_list(tokenizer: Tokenizer, vocab: int) -> list[str]:
    """Return all tokens by id, with names for those that are unused."""
    return [tokenizer.id_to_token(token) or f"<unused {token}>" for token in range(vocab)]


def swap_two_letters(tokenizer: dict[str, Any]) -> None:
    """Have two tokens mean each other, in the content of a tokenizer.json."""
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def add_beyond(tokenizer: dict[str, Any]) -> None:
    """Have a token whose id is beyond the embedding."""
    # not among the added tokens: those are numbered anew when they are read
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<|beyond|>"] = len(vocabulary) + 1000


def forget_eos(tokenizer: dict[str, Any]) -> None:
    """Know nothing of the token that ends an answer."""
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["id"] != EOS]
    tokenizer["model"]["vocab"]["<|nobody|>"] = tokenizer["model"]["vocab"].pop(SPECIALS[EOS])
