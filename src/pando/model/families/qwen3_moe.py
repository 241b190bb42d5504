"""The qwen3_moe family (Qwen3-30B-A3B, Qwen3-235B-A22B): Qwen3 with experts.

Paper: arXiv 2505.09388. Not covered: sliding windows, dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ExpertsConfig, LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, hf_experts, hf_moe_names, read_router, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_moe_names, read_gguf_as_hf
from pando.model.families.qwen2_moe import read_mixtures, write_mixtures
from pando.model.families.reading import Switches, read_rope


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"num_key_value_heads": 4} | hf)
    switches.only("use_sliding_window", False)
    switches.ignore("sliding_window", "max_window_layers")  # of no account without that switch
    shape = read_shape(switches, 32_768)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("attention_bias", False)
    router = read_router(switches, 8, normalise=switches.flag("norm_topk_prob", False))
    hidden = switches.integer("moe_intermediate_size", 768)
    mixture = ExpertsConfig(switches.count(128, "num_experts", "num_local_experts"), hidden, router, shape.activation)
    layers = [
        LayerConfig(shape.attention(rope, bias=bias, out_bias=bias, qk_norm="head"), mlp)
        for mlp in read_mixtures(switches, shape, mixture)
    ]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, "qwen3_moe", shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    switches: dict[str, Any] = {"attention_bias": config.layers[0].attention.bias, **write_mixtures(config)}
    return write_decoder(config, "Qwen3MoeForCausalLM", **switches)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "qwen3_moe", norm_topk_prob=True)
    hf["moe_intermediate_size"] = switches.integer("expert_feed_forward_length")
    hf.setdefault("intermediate_size", hf["moe_intermediate_size"])  # no layer is without experts there
    return _config(hf)


FAMILY = Family(
    name="qwen3_moe",
    config=_config,
    hf_config=_hf_config,
    keys=hf_moe_names,
    packed=hf_experts,
    gguf=Gguf("qwen3moe", _gguf_config, None, gguf_moe_names),
)
