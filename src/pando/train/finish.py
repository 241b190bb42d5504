"""What a run leaves behind: a base model as a Hugging Face folder, with a card that says what it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pando.files import atomic_dir
from pando.model.checkpoint import save_model
from pando.model.transformer import Transformer
from pando.train.config import PretrainConfig
from pando.train.shards import Shards

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_base(
    folder: Path, model: Transformer, shards: Shards, config: PretrainConfig, actual: dict[str, Any]
) -> None:
    """Writes the folder, whole or not at all: weights (float32), config, tokenizer and README.md, the model's card.

    Args:
        model: whole, on the CPU.
        actual: what the run took; see `pando.train.loop`.
    """
    with atomic_dir(folder) as new:
        ids = {"bos_token_id": None, "eos_token_id": shards.end, "pad_token_id": shards.end}
        save_model(model, new, ids)
        for name in _TOKENIZER_FILES:
            if (shards.folder / name).is_file():
                shutil.copyfile(shards.folder / name, new / name)
        (new / "generation_config.json").write_text(
            json.dumps({"eos_token_id": shards.end, "pad_token_id": shards.end})
        )
        (new / "README.md").write_text(card(model, shards, config, actual), encoding="utf-8")


def card(model: Transformer, shards: Shards, config: PretrainConfig, actual: dict[str, Any]) -> str:
    """The model card: shape, data mix with licences, objectives, what was measured, what it cost."""
    shape = config.model
    total = sum(source.tokens for source in shards.sources) or 1
    validation = actual.get("validation") or {}
    bits = validation.get("sources") or {}
    rows = [
        f"| {one.name} | {one.licence} | {one.documents:,} | {one.tokens:,} | {100 * one.tokens / total:.1f} % | "
        f"{bits[one.name]:.3f} |" if one.name in bits else
        f"| {one.name} | {one.licence} | {one.documents:,} | {one.tokens:,} | {100 * one.tokens / total:.1f} % | - |"
        for one in shards.sources
    ]  # fmt: skip
    licences = sorted({source.licence for source in shards.sources})
    objectives = ", ".join(f"{name} ({weight})" for name, weight in config.objectives.items())
    held = actual.get("bits_per_byte")
    lines = [
        f"# {config.name}",
        "",
        f"A base model of the {shape.family} family, trained from scratch with `pando pretrain`. It continues text; it "
        "was not taught to follow instructions.",
        "",
        f"- {model.config.parameters:,} parameters: {shape.depth} blocks of width {shape.width}, {shape.heads} heads "
        f"({shape.kv_heads} for keys and values), vocabulary {model.config.vocab_size:,}, context {shape.context}",
        f"- trained on {actual['tokens']:,} tokens in {actual['steps']:,} steps of {config.batch:,}; objectives: "
        f"{objectives}",
        f"- {held:.4f} bits per byte on held-back documents" if held is not None else "- no held-back documents",
        f"- took {actual['hours']:.2f} hours and {actual['usd']:.2f} US dollars",
        "",
        "## What it was trained on",
        "",
        f"Corpus `{shards.hash}`. Licences of the text: {', '.join(licences)}. The weights can carry text of it.",
        "",
        "| source | licence | documents | tokens | share | bits per byte |",
        "|---|---|---:|---:|---:|---:|",
        *rows,
        "",
        "Every value of the run is in `config.yaml` beside this folder.",
        "",
    ]
    return "\n".join(lines)
