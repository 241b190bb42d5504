"""The mixtral family (Mixtral): the llama block with eight experts, of which a token goes to two.

Paper: arXiv 2401.04088. Not covered: dropout, quantised weights, noise on the router's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import ExpertsConfig, LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf, Packed
from pando.model.families.decoder import (
    HF_ENDS,
    HF_SITES,
    experts,
    finish,
    names,
    read_router,
    read_shape,
    read_window,
    write_decoder,
)
from pando.model.families.decoder_gguf import gguf_moe_names, paired_heads, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_SITES = HF_SITES | {"mlp.router": "block_sparse_moe.gate"}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"num_key_value_heads": 8} | hf)
    switches.only("router_jitter_noise", 0.0)
    shape = read_shape(switches, 131_072)
    rope = read_rope(switches, shape.head_dim, shape.context_length, 1_000_000.0)
    window = read_window(switches)
    router = read_router(switches, 2)
    mixture = ExpertsConfig(
        switches.count(8, "num_local_experts", "num_experts"), shape.hidden, router, shape.activation
    )
    layer = LayerConfig(shape.attention(rope, window=window), mixture)
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-5))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "mixtral", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[-1]
    assert isinstance(layer.mlp, ExpertsConfig)
    switches: dict[str, Any] = {
        "sliding_window": layer.attention.window,
        "num_local_experts": layer.mlp.count,
        "num_experts_per_tok": layer.mlp.router.top_k,
    }
    return write_decoder(config, "MixtralForCausalLM", **switches)


def _packed(config: ModelConfig) -> Iterator[Packed]:
    called = {"gate": "w1", "up": "w3", "down": "w2"}
    return experts(config, "model.layers.{}.block_sparse_moe.experts.{}", called)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "mixtral")
    hf["num_local_experts"] = hf.pop("num_experts")
    return _config(hf)


FAMILY = Family(
    name="mixtral",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: names(config, _SITES, HF_ENDS, "model.layers.{}"),
    packed=_packed,
    gguf=Gguf(
        "llama",
        _gguf_config,
        None,
        gguf_moe_names,
        paired=paired_heads,
        told_by="expert_count",
    ),
)
