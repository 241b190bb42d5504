"""The gemma3 family (the text part of Gemma 3): Gemma 2 without caps, with norms on the queries and keys of each head,
five local layers to a global one, whose positions alone are stretched.

Paper: arXiv 2503.19786. Not covered: images (`model_type` "gemma3"), dropout, quantised weights, attention in both
directions.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import FULL, SLIDING, finish, read_shape, read_windows, write_ropes
from pando.model.families.decoder_gguf import read_gguf_as_hf
from pando.model.families.gemma2 import gemma_gguf_names, gemma_names, gemma_scale, gemma_switches, write_gemma
from pando.model.families.reading import Switches, read_ropes

_USUAL = {"head_dim": 256, "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh"}
_KINDS = {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = gemma_switches(hf, _USUAL)
    shape = read_shape(switches, 131_072, activation="hidden_activation")
    ropes = read_ropes(switches, shape.head_dim, shape.context_length, _KINDS)
    every = switches.integer("sliding_window_pattern", 6)
    bias, scale = switches.flag("attention_bias", False), gemma_scale(switches)
    switches.only("attn_logit_softcapping", None)  # Gemma 2 has it
    common: dict[str, Any] = {"bias": bias, "out_bias": bias, "scale": scale}
    layers = []
    for window in read_windows(switches, shape.depth, lambda layer: (layer + 1) % every != 0):
        rope = ropes[FULL if window is None else SLIDING]
        attention = shape.attention(rope, qk_norm="head", window=window, **common)
        layers.append(LayerConfig(attention, shape.mlp(), order="sandwich"))
    more = {"embed_scale": shape.d_model**0.5, "softcap": switches.maybe("final_logit_softcapping")}
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6), offset=1.0)
    tied = switches.flag("tie_word_embeddings", True)
    return finish(switches, "gemma3_text", shape, layers, norm, tied=tied, **more)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "gemma3_text")
    # llama.cpp knows these by the size of the model: only the 27B scales by d_model / heads
    by_width = hf["num_hidden_layers"] == 62
    hf["query_pre_attn_scalar"] = hf["hidden_size"] // hf["num_attention_heads"] if by_width else hf["head_dim"]
    hf["rope_local_base_freq"] = switches.number("rope.freq_base_swa", 10_000.0)
    return _config(hf)


FAMILY = Family(
    name="gemma3_text",
    config=_config,
    hf_config=lambda config: write_gemma(config, "Gemma3ForCausalLM") | write_ropes(config),
    keys=gemma_names,
    gguf=Gguf("gemma3", _gguf_config, None, gemma_gguf_names, norm_offset=1.0),
)
