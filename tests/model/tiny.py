"""Tiny random models and tokenizers for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pando.model.checkpoint import packed, save_model, tensors_of
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig, RopeScaling
from pando.model.families import family
from pando.model.transformer import Transformer

Recorder = Callable[[str, object], None]  # pytest's record_property
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = ["The quick brown fox jumps over the lazy dog.", "In 2024: naïve café, 日本語 🎉!", "def f(x): return x"]


def config(
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    tied: bool = True,
    bias: bool = False,
    scaling: RopeScaling | None = None,
    hidden: int = 96,
    family: str = "llama",
    **changes: Any,
) -> ModelConfig:
    """A llama, qwen2 or qwen3 of two layers; `bias` is that of attention and, in a llama, of the feed-forward layer."""
    rope = RopeConfig(head_dim, 10_000.0, scaling)
    norms = "head" if family == "qwen3" else None
    attention = AttentionConfig(heads, kv_heads, head_dim, rope, bias or family == "qwen2", bias, norms)
    values: dict[str, Any] = {
        "vocab_size": 320,
        "d_model": 64,
        "context_length": 128,
        "initializer_range": 0.2,
    }
    return ModelConfig(
        family=family,
        layers=(LayerConfig(attention, MlpConfig(hidden, bias=bias and family == "llama")),) * 2,
        tied=tied,
        **values | changes,
    )


def model(shape: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights, norms and biases included."""
    made = Transformer(shape)
    made.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval().requires_grad_(False)


def tokenizer() -> Tokenizer:
    """A byte-level BPE with some merges, the special tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT * 3, trainer)
    return made


def write_tokenizer(folder: Path, made: Tokenizer | None = None, **settings: Any) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    (made or tokenizer()).save(str(folder / "tokenizer.json"))
    values = {"bos_token": SPECIALS[1], "eos_token": SPECIALS[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values | settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))


def write_base(folder: Path, shape: ModelConfig | None = None, seed: int = 0) -> Path:
    """A whole Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model(shape or config(), seed), folder, {"bos_token_id": 1, "eos_token_id": 2})
    write_tokenizer(folder)
    return folder


def short(gap: float) -> str:
    """A difference as the report tells it."""
    return f"{gap:.0e}" if gap else "0"


def near(record: Recorder, name: str, found: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
    """That no number is further off; how far it is goes into the report, from which docs/families.md is made."""
    gap = float((found - wanted).abs().max())
    record(name, short(gap))
    assert gap < most


def check_gradients(record: Recorder, ours: Transformer, wanted: Mapping[str, Any]) -> None:
    """That the gradients of ours are those of a Hugging Face model by key, relative where they are above 1; they and
    the wish for them are let go."""
    furthest = 0.0
    grads = {key: parameter.grad for key, parameter in ours.named_parameters()}
    for part in tensors_of(family(ours.config.family), ours.config):
        if part.theirs.endswith("e_score_correction_bias"):
            continue  # counts for the choice alone
        mine = packed(part, [grads[name] for name in part.ours])
        scale = max(1.0, float(wanted[part.theirs].abs().max()))
        gap = float((mine - wanted[part.theirs]).abs().max()) / scale
        assert gap < 1e-4, part.theirs
        furthest = max(furthest, gap)
    record("gradients", short(furthest))
    ours.requires_grad_(False)
    for parameter in ours.parameters():
        parameter.grad = None
