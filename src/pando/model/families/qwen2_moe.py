"""The qwen2_moe family (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with experts, and a shared one behind a gate.

Paper: arXiv 2407.10671. Not covered: sliding windows, adapters on `shared_expert_gate`, dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ExpertsConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import Shape, finish, hf_experts, hf_moe_names, read_router, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_moe_names, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope


def read_mixtures(switches: Switches, shape: Shape, mixture: ExpertsConfig) -> list[MlpConfig | ExpertsConfig]:
    """Which layers have experts: every so many, and none of those that are listed."""
    every = switches.integer("decoder_sparse_step", 1)
    plain = switches.each("mlp_only_layers", *range(shape.depth))
    return [mixture if i not in plain and (i + 1) % every == 0 else shape.mlp() for i in range(shape.depth)]


def write_mixtures(config: ModelConfig) -> dict[str, Any]:
    """What both Qwens write of their experts."""
    plain = [i for i, layer in enumerate(config.layers) if not isinstance(layer.mlp, ExpertsConfig)]
    found = next(layer.mlp for layer in config.layers if isinstance(layer.mlp, ExpertsConfig))
    return {
        "num_experts": found.count,
        "num_experts_per_tok": found.router.top_k,
        "moe_intermediate_size": found.hidden,
        "norm_topk_prob": found.router.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": plain,
        "use_sliding_window": False,
    }


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    switches.only("use_sliding_window", False)
    switches.ignore("sliding_window", "max_window_layers")  # of no account without that switch
    switches.each("layer_types", "full_attention")
    shape = read_shape(switches, 32_768)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("qkv_bias", True)
    router = read_router(switches, 4, normalise=switches.flag("norm_topk_prob", False))
    mixture = ExpertsConfig(
        switches.count(60, "num_experts", "num_local_experts"),
        switches.integer("moe_intermediate_size", 1408),
        router,
        shape.activation,
        shared=switches.integer("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    layers = [LayerConfig(shape.attention(rope, bias=bias), mlp) for mlp in read_mixtures(switches, shape, mixture)]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, "qwen2_moe", shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    found = next(layer.mlp for layer in config.layers if isinstance(layer.mlp, ExpertsConfig))
    switches: dict[str, Any] = {
        "qkv_bias": config.layers[0].attention.bias,
        "shared_expert_intermediate_size": found.shared,
        **write_mixtures(config),
    }
    return write_decoder(config, "Qwen2MoeForCausalLM", **switches)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "qwen2_moe")
    hf.pop("head_dim")
    hf["moe_intermediate_size"] = switches.integer("expert_feed_forward_length")
    hf["shared_expert_intermediate_size"] = switches.integer("expert_shared_feed_forward_length")
    return _config(hf)


FAMILY = Family(
    name="qwen2_moe",
    config=_config,
    hf_config=_hf_config,
    keys=hf_moe_names,
    packed=hf_experts,
    gguf=Gguf("qwen2moe", _gguf_config, None, gguf_moe_names),
)
