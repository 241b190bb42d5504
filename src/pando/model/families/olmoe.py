"""The olmoe family (OLMoE): many small experts, norms on all queries and keys as a whole.

Paper: arXiv 2409.02060. Not covered: `clip_qkv`, dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ExpertsConfig, LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, hf_experts, hf_moe_names, read_router, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_moe_names, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    shape = read_shape(switches, 4096)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("attention_bias", False)
    router = read_router(switches, 8, normalise=switches.flag("norm_topk_prob", False))
    mixture = ExpertsConfig(
        switches.count(64, "num_experts", "num_local_experts"), shape.hidden, router, shape.activation
    )
    layer = LayerConfig(shape.attention(rope, bias=bias, out_bias=bias, qk_norm="whole"), mixture)
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-5))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "olmoe", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert isinstance(layer.mlp, ExpertsConfig)
    switches: dict[str, Any] = {
        "attention_bias": layer.attention.bias,
        "num_experts": layer.mlp.count,
        "num_experts_per_tok": layer.mlp.router.top_k,
        "norm_topk_prob": layer.mlp.router.normalise,
    }
    return write_decoder(config, "OlmoeForCausalLM", **switches)


def _gguf_config(switches: Switches) -> ModelConfig:
    return _config(read_gguf_as_hf(switches, "olmoe"))


FAMILY = Family(
    name="olmoe",
    config=_config,
    hf_config=_hf_config,
    keys=hf_moe_names,
    packed=hf_experts,
    gguf=Gguf("olmoe", _gguf_config, None, gguf_moe_names),
)
