"""What a run leaves behind: a base model as a Hugging Face folder, with a card that says what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pando.model.card import Card
from pando.model.export import write_base
from pando.model.transformer import Transformer
from pando.train.config import PretrainConfig
from pando.train.dial import train_flops
from pando.train.shards import Shards


def leave_base(
    folder: Path, model: Transformer, shards: Shards, config: PretrainConfig, actual: dict[str, Any]
) -> None:
    """Writes the folder, whole or not at all.

    Args:
        model: whole, on the CPU.
        actual: what the run took; see `pando.train.loop`.
    """
    write_base(folder, model, shards.folder, card(model, shards, config, actual))


def card(model: Transformer, shards: Shards, config: PretrainConfig, actual: dict[str, Any]) -> Card:
    """The model card: data mix with licences, shape and objectives, what was measured, what it cost."""
    total = sum(source.tokens for source in shards.sources) or 1
    bits = (actual.get("validation") or {}).get("sources") or {}
    data = [
        {
            "source": one.name,
            "licence": one.licence,
            "documents": one.documents,
            "tokens": one.tokens,
            "share": f"{100 * one.tokens / total:.1f} %",
            "bits per byte": bits.get(one.name, "-"),
        }
        for one in shards.sources
    ]
    shape = config.model
    training = {
        "parameters": model.config.parameters,
        "shape": f"{shape.family}, {shape.depth} blocks of width {shape.width}, {shape.heads} heads",
        "context": shape.context,
        "vocabulary": model.config.vocab_size,
        "tokens": actual["tokens"],
        "steps": actual["steps"],
        "objectives": ", ".join(config.objectives),
        "corpus": shards.hash,
    }
    flops = f"{actual['tokens'] * train_flops(model.config):.3g}"
    costs = {"hours": actual["hours"], "US dollars": actual["usd"], "FLOPs": flops}
    held = actual.get("bits_per_byte")
    return Card(
        name=config.name,
        summary="A base model trained from scratch with `pando pretrain`. It continues text; it was not taught to "
        "follow instructions. The weights can carry text that they were trained on.",
        data=data,
        training=training,
        costs=costs,
        results={} if held is None else {"bits per byte, held-back documents": held},
    )
