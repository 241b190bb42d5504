"""Training a tokenizer: byte-level BPE (Sennrich et al. 2016) with the special tokens that the objectives need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pando.errors import DataError
from pando.files import atomic_write

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
END = "<|endoftext|>"
TURN, TURN_END = CHAT_MARKS = ("<|im_start|>", "<|im_end|>")  # of ChatML
SPECIALS = (
    END,
    *CHAT_MARKS,
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|mask|>",
    *(f"<|sentinel_{place}|>" for place in range(32)),
)
# how text is cut before pairs are merged: Llama 3's pattern, which llama.cpp knows as "llama-bpe"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(texts: Iterable[str], vocab_size: int) -> Any:
    """Trains a tokenizer (`tokenizers.Tokenizer`): the special tokens first, then the 256 bytes, then the merges.

    Equal texts in the same order give the same tokenizer. Memory grows with the distinct words: hand in a sample.

    Raises:
        DataError: `vocab_size` leaves no room for merges.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < len(SPECIALS) + 256:
        raise DataError(f"a vocabulary of {vocab_size} has no room: at least {len(SPECIALS) + 256} are needed")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def save(made: Any, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, as a Hugging Face folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(made).items():
        atomic_write(folder / name, content)


def files(made: Any) -> dict[str, str]:
    """The files of a tokenizer trained here, by name."""
    named = {"eos_token": END, "pad_token": END, "mask_token": "<|mask|>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
    return {
        "tokenizer.json": made.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
    }
