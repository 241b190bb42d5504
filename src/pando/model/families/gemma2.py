"""The gemma2 family (Gemma 2): norms before and after each part, capped scores and logits, every other layer local.

Paper: arXiv 2408.00118. Not covered: dropout, quantised weights, attention in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import (
    HF_ENDS,
    HF_SITES,
    finish,
    names,
    read_shape,
    read_windows,
    write_decoder,
    write_windows,
)
from pando.model.families.decoder_gguf import GGUF_AFTER, gguf_sites, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_SITES = HF_SITES | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_USUAL = {"head_dim": 256, "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh"}
_USUAL |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def gemma_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key)."""
    return names(config, _SITES, HF_ENDS, "model.layers.{}")


def gemma_switches(hf: dict[str, Any], usual: dict[str, Any]) -> Switches:
    """The switches, with what Gemma takes where a config does not say."""
    switches = Switches({"num_key_value_heads": 4} | usual | hf)
    switches.ignore("hidden_act")  # written by mistake; `hidden_activation` counts
    switches.only("use_bidirectional_attention", None, False)
    return switches


def gemma_scale(switches: Switches) -> float:
    """Factor on scores."""
    return float(switches.integer("query_pre_attn_scalar", 256) ** -0.5)


def write_gemma(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What both Gemmas write."""
    attention = config.layers[0].attention
    assert attention.scale is not None
    switches: dict[str, Any] = {
        "query_pre_attn_scalar": round(attention.scale**-2),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.softcap,
        "attention_bias": attention.bias,
    }
    return write_decoder(config, architecture, activation="hidden_activation", **switches) | write_windows(config)


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = gemma_switches(hf, _USUAL)
    switches.ignore("sliding_window_size")  # what 9b says again
    shape = read_shape(switches, 8192, activation="hidden_activation")
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias, scale = switches.flag("attention_bias", False), gemma_scale(switches)
    common = {"bias": bias, "out_bias": bias, "scale": scale, "softcap": switches.maybe("attn_logit_softcapping")}
    layers = [
        LayerConfig(shape.attention(rope, window=window, **common), shape.mlp(), order="sandwich")
        for window in read_windows(switches, shape.depth, lambda layer: layer % 2 == 0)
    ]
    more = {"embed_scale": shape.d_model**0.5, "softcap": switches.maybe("final_logit_softcapping")}
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6), offset=1.0)
    tied = switches.flag("tie_word_embeddings", True)
    return finish(switches, "gemma2", shape, layers, norm, tied=tied, **more)


def gemma_gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, GGUF tensor name)."""
    return gguf_sites(config, GGUF_AFTER)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "gemma2")
    hf["attn_logit_softcapping"] = switches.number("attn_logit_softcapping", 50.0)
    hf["final_logit_softcapping"] = switches.number("final_logit_softcapping", 30.0)
    # llama.cpp tells the 27B by its depth: its scores are scaled by d_model / heads
    by_width = hf["num_hidden_layers"] == 46
    hf["query_pre_attn_scalar"] = hf["hidden_size"] // hf["num_attention_heads"] if by_width else hf["head_dim"]
    return _config(hf)


FAMILY = Family(
    name="gemma2",
    config=_config,
    hf_config=lambda config: write_gemma(config, "Gemma2ForCausalLM"),
    keys=gemma_names,
    gguf=Gguf("gemma2", _gguf_config, None, gemma_gguf_names, norm_offset=1.0),
)
