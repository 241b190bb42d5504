"""What a run leaves behind: a base model as a Hugging Face folder, with a card that says what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pando.model.base import open_base
from pando.model.card import Card
from pando.model.config import ExpertsConfig
from pando.model.export import write_base, write_like
from pando.model.families import family
from pando.model.transformer import Transformer
from pando.train.config import PretrainConfig
from pando.train.dial import train_flops
from pando.train.shards import Shards

_DOES = {  # what the hub calls it, and in words
    "decoder": ("text-generation", "continues text"),
    "encoder": ("fill-mask", "reads text and fills gaps in it"),
    "encoder-decoder": ("text2text-generation", "reads text and writes what is missing in it"),
}


def leave_base(
    folder: Path, model: Transformer, shards: Shards, config: PretrainConfig, actual: dict[str, Any]
) -> None:
    """Writes the folder, whole or not at all.

    Args:
        model: whole, on the CPU.
        actual: what the run took; see `pando.train.loop`.
    """
    told = card(model, shards, config, actual)
    if config.base is None:
        write_base(folder, model, shards.folder, told)
    else:
        write_like(open_base(config.base), folder, model, told.text())


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
    shape, group = model.config, family(model.config.family).group
    mixture = next((layer.mlp for layer in shape.layers if isinstance(layer.mlp, ExpertsConfig)), None)
    experts = f", {mixture.count} experts of which a token meets {mixture.router.top_k}" if mixture else ""
    heads = shape.layers[0].attention.heads
    began, taught = "from scratch", "; it was not taught to follow instructions"
    if config.base is not None:
        came = open_base(config.base).identity
        began, taught = f"from the weights of {came.name} ({came.hash})", ""
    training = {
        "parameters": model.config.parameters,
        "shape": f"{shape.family}, {len(shape.layers)} blocks of width {shape.d_model}, {heads} heads{experts}",
        "context": shape.context_length,
        "vocabulary": model.config.vocab_size,
        "tokens": actual["tokens"],
        "steps": actual["steps"],
        "objectives": ", ".join(config.objectives),
        "corpus": shards.hash,
    }
    flops = f"{actual['tokens'] * train_flops(model.config):.3g}"
    costs = {"hours": actual["hours"], "US dollars": actual["usd"], "FLOPs": flops}
    held = actual.get("bits_per_byte")
    task, does = _DOES[group]
    return Card(
        name=config.name,
        summary=f"A base model trained {began} with `pando pretrain`. It {does}{taught}. The "
        "weights can carry text that they were trained on.",
        task=task,
        data=data,
        training=training,
        costs=costs,
        results={} if held is None else {"bits per byte, held-back documents": held},
    )
