"""What a base is and what it costs, from its config alone: no weights are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pando.model import costs
from pando.model.config import AttentionConfig, ExpertsConfig, LayerConfig, ModelConfig

CACHE_NUMBER = 2  # bytes of a cached number in bfloat16
_UNPACKED = ("router", "shared_gate", "kv_b")  # matrices of a block that are no projections, and are never int8


def config_of(ref: str | Path) -> tuple[ModelConfig, str, tuple[str, ...]]:
    """The config of a base, its name, and notes on what is there.

    Args:
        ref: a pulled base, a Hugging Face folder or only its config.json, or a GGUF file.

    Raises:
        BaseModelError: no such base, or one that is not supported; names the switch.
    """
    from pando.model.base import is_pulled, open_base
    from pando.model.checkpoint import read_json
    from pando.model.families import read_config

    path = Path(ref).expanduser()
    if path.suffix.lower() == ".gguf":
        from pando.model.gguf import read_gguf_config

        return read_gguf_config(path), path.stem, ()
    if path.is_dir() and (path / "config.json").is_file() and not is_pulled(str(ref)):
        path = path / "config.json"
    if path.suffix.lower() == ".json":
        hf = read_json(path)
        stored = hf.pop("quantization_config", None)
        kind = stored.get("quant_method", "an unknown way") if isinstance(stored, dict) else ""
        notes = (f"The weights are stored quantised ({kind}), which Pando does not load.",) if stored else ()
        return read_config(hf), path.absolute().parent.name if path.name == "config.json" else path.stem, notes
    base = open_base(ref)
    return base.config, base.identity.name, ()


def facts(config: ModelConfig, name: str) -> dict[str, Any]:
    """Everything that `pando show` says, as JSON. Bytes are bytes, FLOPs count a multiply-add as two.

    "flops_per_token" are those of every matrix that one token meets, the output head included; attention over the
    tokens before comes on top, "attention_flops_per_token" where the context is full. "active" parameters are all but
    those of experts that a token does not go to. Cached numbers have two bytes (bfloat16).
    """
    length = config.context_length
    matrices = costs.matrix_flops(config) + costs.head_flops(config)
    read = 0 if config.encoder is None else config.encoder.context_length
    return {
        "name": name,
        "family": config.family,
        "layers": len(config.layers),
        "d_model": config.d_model,
        "vocab_size": config.vocab_size,
        "context_length": length,
        "tied": config.tied,
        "predicts": config.predicts,
        "blocks": _blocks(config),
        "encoder": None if config.encoder is None else _encoder(config, config.encoder),
        "parameters": {
            "total": config.parameters,
            "active": config.active_parameters,
            "embedding": config.vocab_size * config.d_model,
        },
        "flops_per_token": matrices,
        "attention_flops_per_token": _attention_flops(config, source=read),
        # an encoder keeps nothing of a text once its vectors are there
        "kv_bytes_per_token": 0 if config.both_ways else costs.cache_bytes(config, CACHE_NUMBER),
        "kv_bytes_at_context": 0 if config.both_ways else sum(_cached(layer, length) for layer in config.layers),
        "memory": {
            "float32": 4 * config.parameters,
            "bfloat16": 2 * config.parameters,
            "int8": _int8_bytes(config),
        },
        "can": {"answer": _answers(config), "adapt": _rungs(config), "export": ["hf"] + ["gguf"] * _has_gguf(config)},
    }


def _attention_flops(config: ModelConfig, source: int = 0) -> int:
    """Of a token where the context is full: of the last one, or, where all see all, of each."""
    length = config.context_length
    if config.both_ways:
        return costs.flops(config, length) // length - costs.matrix_flops(config)
    return costs.flops(config, 1, length - 1, source=source) - costs.matrix_flops(config)


def _encoder(config: ModelConfig, encoder: ModelConfig) -> dict[str, Any]:
    """What an encoder-decoder's input costs: each token of it is read once, before the first token of the answer."""
    length = encoder.context_length
    return {
        "layers": len(encoder.layers),
        "context_length": length,
        "blocks": _blocks(encoder),
        "flops_per_token": costs.source_matrix_flops(config),
        "attention_flops_per_token": _attention_flops(encoder),
        "kv_bytes_per_token": costs.source_cache_bytes(config, CACHE_NUMBER),
    }


def _answers(config: ModelConfig) -> list[str]:
    if config.both_ways:
        return [*(["score"] if config.predicts or config.judges else []), "features", "embed"]
    return ["generate", "score", "features", "embed"]


def _rungs(config: ModelConfig) -> list[str]:
    if config.both_ways:
        return ["floor", *(["zero"] if config.predicts else []), "probe", "lora"]
    if config.encoder is not None:
        return ["floor", "zero", "probe", "lora"]
    return ["floor", "zero", "few", "knn", "probe", "lora"]


def _blocks(config: ModelConfig) -> list[dict[str, Any]]:
    return [{"layers": numbers, **_block(layer, config.both_ways)} for layer, numbers in _kinds(config)]


def _cached(layer: LayerConfig, length: int) -> int:
    heads, key, value = layer.attention.cached
    kept = length if layer.attention.window is None else min(length, layer.attention.window)
    return kept * heads * (key + value) * CACHE_NUMBER


def _int8_bytes(config: ModelConfig) -> int:
    """As the engine holds it: projections in int8 with a scale for each output, the rest in bfloat16."""
    total = 0
    for name, shape in config.shapes().items():
        packed = name.removeprefix("encoder.").startswith("layers.") and name.endswith(".weight") and len(shape) == 2
        if packed and not any(f".{part}." in name for part in _UNPACKED):
            total += math.prod(shape) + 2 * shape[0]
        else:
            total += 2 * math.prod(shape)
    return total


def _kinds(config: ModelConfig) -> list[tuple[LayerConfig, list[int]]]:
    """The different blocks, in the order in which they first come, each with the numbers of its layers."""
    found: dict[LayerConfig, list[int]] = {}
    for number, layer in enumerate(config.layers):
        found.setdefault(layer, []).append(number)
    return list(found.items())


def _block(layer: LayerConfig, both_ways: bool) -> dict[str, Any]:
    attention = attention_words(layer.attention, both_ways)
    if layer.cross is not None:
        attention += f"; then {layer.cross.heads} heads over the encoder's tokens"
    return {"order": layer.order, "attention": attention, "mlp": mlp_words(layer)}


def attention_words(config: AttentionConfig, both_ways: bool) -> str:
    """Attention in a line."""
    words = [f"{config.heads} heads of {config.head_dim}"]
    if config.latent is not None:
        words[0] += f" over a latent vector of {config.latent.rank} and one key of {config.latent.rope_dim}"
    elif config.kv_heads < config.heads:
        words[0] += f" over {config.kv_heads} of keys and values"
    if config.window is None:
        words.append("all tokens, both ways" if both_ways else "all tokens before")
    elif both_ways:
        words.append(f"tokens up to {config.window - 1:,} away")
    else:
        words.append(f"the last {config.window:,} tokens")
    if config.qk_norm is not None:
        words.append("queries and keys normed" + (" as a whole" if config.qk_norm == "whole" else ""))
    if config.softcap is not None:
        words.append(f"scores capped at {config.softcap:g}")
    if config.relative is not None:
        words.append(f"distances in {config.relative.buckets} buckets")
    elif config.rope is None:
        words.append("no rotary positions")
    else:
        scaling = config.rope.scaling
        words.append(f"rotary base {config.rope.theta:,.0f}")
        if scaling is not None:
            words.append(f"stretched {scaling.factor:g} times ({scaling.kind})")
        whole = config.head_dim if config.latent is None else config.latent.rope_dim
        if config.rope.dim < whole:
            words.append(f"on {config.rope.dim} of {whole} dimensions")
    return ", ".join(words)


def mlp_words(layer: LayerConfig) -> str:
    """The feed-forward layer in a line."""
    mlp = layer.mlp
    if not isinstance(mlp, ExpertsConfig):
        return f"{mlp.hidden:,} wide, {mlp.activation}{', gated' if mlp.gated else ''}"
    router = mlp.router
    words = [f"{mlp.count} experts of {mlp.hidden:,}, {router.top_k} for each token by {router.scores}"]
    if router.groups > 1:
        words.append(f"from {router.top_groups} of {router.groups} groups")
    if mlp.shared:
        words.append(f"one of {mlp.shared:,} for all tokens")
    return ", ".join(words)


def _has_gguf(config: ModelConfig) -> bool:
    from pando.model.families import family

    form = family(config.family).gguf
    return form is not None and form.metadata is not None
