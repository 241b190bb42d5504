"""The deepseek_v3 family (DeepSeek-V3, -R1): DeepSeek-V2 with experts scored one by one and balanced by a bias.

Paper: arXiv 2412.19437. Not covered: the layers that predict further tokens (their weights are left out), adapters on
`kv_b_proj`, fp8 weights, dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pando.model.config import (
    AttentionConfig,
    LatentConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
)
from pando.model.families import Family
from pando.model.families.decoder import Shape, hf_experts, read_shape
from pando.model.families.deepseek_gguf import deepseek_gguf
from pando.model.families.deepseek_v2 import (
    deepseek_names,
    deepseek_switches,
    read_deepseek,
    read_latent,
    read_mixture,
    write_deepseek,
)


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = deepseek_switches({"q_lora_rank": 1536, "first_k_dense_replace": 3, "moe_intermediate_size": 2048} | hf)
    switches.only("scoring_func", "sigmoid")
    switches.only("topk_method", "noaux_tc")
    shape = read_shape(switches, 4096)
    router = RouterConfig(
        switches.integer("num_experts_per_tok", 8),
        scores="sigmoid",
        normalise=switches.flag("norm_topk_prob", True),
        scale=switches.number("routed_scaling_factor", 2.5),
        bias=True,
        groups=switches.integer("n_group", 8),
        top_groups=switches.integer("topk_group", 4),
        best=2,
    )
    mixture = read_mixture(switches, shape, router, 256)
    return read_deepseek(switches, "deepseek_v3", shape, read_latent(switches, shape), mixture)


def _fresh(shape: Shape, theta: float, more: Mapping[str, Any]) -> ModelConfig:
    """In DeepSeek-V3's proportions: half a head's width turns with positions, and four are kept of each token."""
    plain, turned = shape.head_dim, shape.head_dim // 2
    rope = RopeConfig(turned, theta, interleaved=True)
    latent = LatentConfig(4 * shape.head_dim, turned, shape.head_dim)
    scale = (plain + turned) ** -0.5
    attention = AttentionConfig(shape.heads, shape.heads, plain + turned, rope, scale=scale, latent=latent)
    layer = LayerConfig(attention, shape.mlp())
    return shape.model("deepseek_v3", (layer,) * shape.depth, norm=NormConfig(eps=1e-6), **more)


FAMILY = Family(
    name="deepseek_v3",
    config=_config,
    hf_config=lambda config: write_deepseek(config, "DeepseekV3ForCausalLM"),
    keys=deepseek_names,
    packed=hf_experts,
    fresh=_fresh,
    grouped=False,
    mixture="deepseek_v3",
    router=RouterConfig(8, scores="sigmoid", bias=True, best=2),
    ignored=(r"model\.layers\.DEPTH\..*",),
    gguf=deepseek_gguf("deepseek_v3", _config),
)
