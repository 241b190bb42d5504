"""The deepseek_v2 family (DeepSeek-V2, -V2-Lite, -Coder-V2): latent attention, shared and routed experts.

Paper: arXiv 2405.04434. Not covered: experts in some later layers only (`moe_layer_freq`), adapters on `kv_b_proj`,
dropout, quantised weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pando.model.config import (
    AttentionConfig,
    ExpertsConfig,
    LatentConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RouterConfig,
)
from pando.model.families import Family
from pando.model.families.decoder import HF_ENDS, MOE_SITES, Shape, finish, hf_experts, names, read_shape, write_decoder
from pando.model.families.deepseek_gguf import deepseek_gguf
from pando.model.families.reading import Switches, read_rope, rope_part

_SITES = MOE_SITES | {
    "attention.q_a": "self_attn.q_a_proj",
    "attention.q_norm": "self_attn.q_a_layernorm",
    "attention.kv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_norm": "self_attn.kv_a_layernorm",
    "attention.kv_b": "self_attn.kv_b_proj",
    "mlp.shared.gate": "mlp.shared_experts.gate_proj",
    "mlp.shared.up": "mlp.shared_experts.up_proj",
    "mlp.shared.down": "mlp.shared_experts.down_proj",
}
_UNUSED = ("aux_loss_alpha", "seq_aux", "ep_size", "output_router_logits", "num_nextn_predict_layers", "num_mtp_layers")
_OWN = ("head_dim", "qk_head_dim")  # what transformers derives and writes


def read_latent(switches: Switches, shape: Shape) -> AttentionConfig:
    """Latent attention, its positions and the scale that stretching them brings with it."""
    rope_dim, plain = switches.integer("qk_rope_head_dim", 64), switches.integer("qk_nope_head_dim", 128)
    rank = int(switches.maybe("q_lora_rank") or 0) or None
    value_dim = switches.integer("v_head_dim", 128)
    latent = LatentConfig(switches.integer("kv_lora_rank", 512), rope_dim, value_dim, rank)
    interleaved = switches.flag("rope_interleave", True)
    scale = (plain + rope_dim) ** -0.5
    part = rope_part(switches)
    if part is not None and part.has("factor") and part.maybe("mscale_all_dim"):
        scale *= (0.1 * part.number("mscale_all_dim") * math.log(part.number("factor")) + 1.0) ** 2
    rope = replace(read_rope(switches, rope_dim, shape.context_length), interleaved=interleaved)
    bias = switches.flag("attention_bias", False)
    return AttentionConfig(shape.heads, shape.heads, plain + rope_dim, rope, bias, bias, scale=scale, latent=latent)


def read_mixture(switches: Switches, shape: Shape, router: RouterConfig, usual: int) -> ExpertsConfig:
    """Routed and shared experts; `usual` is how many of the former there are where nothing is said."""
    hidden = switches.integer("moe_intermediate_size", 1407)
    shared = hidden * switches.integer("n_shared_experts", 1)
    return ExpertsConfig(
        switches.count(usual, "n_routed_experts", "num_local_experts", "num_experts"),
        hidden,
        router,
        shape.activation,
        shared,
    )


def read_deepseek(
    switches: Switches, family: str, shape: Shape, attention: AttentionConfig, mixture: ExpertsConfig
) -> ModelConfig:
    """What both read: the first layers are plain."""
    plain = switches.integer("first_k_dense_replace", 0, least=0)
    if plain >= shape.depth:
        raise switches.wrong("first_k_dense_replace", plain, f"less than num_hidden_layers, {shape.depth}")
    layers = [LayerConfig(attention, shape.mlp() if i < plain else mixture) for i in range(shape.depth)]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, family, shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


def deepseek_switches(hf: dict[str, Any]) -> Switches:
    """The switches, without those of training and what is derived from others."""
    switches = Switches({key: value for key, value in hf.items() if key not in _OWN})
    switches.ignore(*_UNUSED)
    switches.only("moe_layer_freq", 1)
    switches.only("mlp_bias", False)
    return switches


def write_deepseek(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What both write."""
    attention = config.layers[0].attention
    latent, rope = attention.latent, attention.rope
    assert latent is not None and rope is not None and attention.scale is not None
    plain = next(i for i, layer in enumerate(config.layers) if isinstance(layer.mlp, ExpertsConfig))
    mixture = config.layers[plain].mlp
    assert isinstance(mixture, ExpertsConfig)
    switches: dict[str, Any] = {
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.q_rank,
        "qk_rope_head_dim": latent.rope_dim,
        "qk_nope_head_dim": attention.head_dim - latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "rope_interleave": rope.interleaved,
        "attention_bias": attention.bias,
        "first_k_dense_replace": plain,
        "moe_intermediate_size": mixture.hidden,
        "n_routed_experts": mixture.count,
        "n_shared_experts": mixture.shared // mixture.hidden,
        "num_experts_per_tok": mixture.router.top_k,
        "norm_topk_prob": mixture.router.normalise,
        "routed_scaling_factor": mixture.router.scale,
        "n_group": mixture.router.groups,
        "topk_group": mixture.router.top_groups,
    }
    written = write_decoder(config, architecture, **switches)
    written["num_key_value_heads"] = attention.heads
    for derived in (*_OWN, "partial_rotary_factor"):
        written.pop(derived, None)
    scaling = written["rope_scaling"]
    grown = (attention.scale * attention.head_dim**0.5) ** 0.5
    if scaling and grown > 1:
        # the two multipliers that this factor on scores and the one on cos and sin came from
        each = 0.1 * math.log(scaling["factor"])
        turned = scaling.pop("attention_factor", None) or 1.0
        scaling |= {
            "mscale": round((turned * grown - 1) / each, 9),
            "mscale_all_dim": round((grown - 1) / each, 9),
        }
    return written


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = deepseek_switches({"q_lora_rank": 1536, "n_shared_experts": 2} | hf)
    switches.only("scoring_func", "softmax")
    switches.only("norm_topk_prob", False)
    switches.only("rope_interleave", True)
    shape = read_shape(switches)
    limited = switches.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    groups, top_groups = (int(switches.maybe(key) or 1) for key in ("n_group", "topk_group"))
    router = RouterConfig(
        switches.integer("num_experts_per_tok"),
        normalise=False,
        scale=switches.number("routed_scaling_factor", 1.0),
        groups=groups if limited else 1,
        top_groups=top_groups if limited else 1,
    )
    mixture = read_mixture(switches, shape, router, 64)
    return read_deepseek(switches, "deepseek_v2", shape, read_latent(switches, shape), mixture)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    written = write_deepseek(config, "DeepseekV2ForCausalLM")
    written.pop("rope_interleave")
    return written | {"topk_method": "group_limited_greedy" if written["n_group"] > 1 else "greedy"}


def deepseek_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key); where queries are compressed too, theirs is called q_b_proj."""
    latent = config.layers[0].attention.latent
    assert latent is not None
    queries = {} if latent.q_rank is None else {"attention.q": "self_attn.q_b_proj"}
    for ours, theirs in names(config, _SITES | queries, HF_ENDS, "model.layers.{}"):
        yield ours, theirs.replace("mlp.gate.bias", "mlp.gate.e_score_correction_bias")


FAMILY = Family(
    name="deepseek_v2",
    config=_config,
    hf_config=_hf_config,
    keys=deepseek_names,
    packed=hf_experts,
    gguf=deepseek_gguf("deepseek_v2", _config),
)
