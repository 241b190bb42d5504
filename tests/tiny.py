"""A base model small enough for any test: random weights, a byte-level tokenizer, the llama family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pando.engine.engine import Engine
from pando.model.base import BaseModel, open_base
from pando.model.checkpoint import save_model
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig
from pando.model.transformer import Transformer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"


def tiny_base(folder: Path, context_length: int = 256, seed: int = 0, family: str = "llama") -> BaseModel:
    """Writes a Hugging Face folder with fresh weights and opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    text = ["the cat sat on the mat", "a dog and the other cat", '{"name": "value", "number": 12}']
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken(END, special=True)])
    layer = LayerConfig(
        AttentionConfig(4, 2, 16, RopeConfig(16), qk_norm="head" if family == "qwen3" else None), MlpConfig(96)
    )
    config = ModelConfig(family, raw.get_vocab_size(), 64, (layer,) * 3, context_length, tied=True)
    model = Transformer(config)
    model.initialise(seed)
    with torch.no_grad():
        model.embed.weight.mul_(8)  # sharp enough that the likeliest token is no near-tie
    raw.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "pad_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": raw.token_to_id(END)}))
    save_model(model, folder, {"eos_token_id": raw.token_to_id(END)})
    return open_base(folder)


def tiny_engine(folder: Path, cache_tokens: int = 4096, **options: Any) -> Engine:
    """An engine over a fresh tiny base."""
    base = tiny_base(folder, **options)
    return Engine(base, base.module(), torch.device("cpu"), "float32", cache_tokens)
