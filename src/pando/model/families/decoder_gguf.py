"""What GGUF files of decoders of the llama kind share: the names of their metadata and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pando.errors import BaseModelError
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig, RopeConfig, RopeScaling
from pando.model.families.decoder import SITES, checked, names
from pando.model.families.reading import Switches

_GGUF_ENDS = {"embed": "token_embd", "norm": "output_norm", "unembed": "output"}


GGUF_MOE = {
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate": "ffn_gate_exps",
    "mlp.experts.up": "ffn_up_exps",
    "mlp.experts.down": "ffn_down_exps",
    "mlp.shared.gate": "ffn_gate_shexp",
    "mlp.shared.up": "ffn_up_shexp",
    "mlp.shared.down": "ffn_down_shexp",
    "mlp.shared_gate": "ffn_gate_inp_shexp",
}
GGUF_AFTER = {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}


def gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, GGUF tensor name)."""
    return names(config, {ours: theirs for ours, (_, theirs) in SITES.items()}, _GGUF_ENDS, "blk.{}")


def gguf_sites(config: ModelConfig, more: Mapping[str, str], without: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(our parameter name, GGUF tensor name), with the family's own names, and without the sites that are packed."""
    sites: dict[str, str] = {ours: theirs for ours, (_, theirs) in SITES.items() if ours not in without} | dict(more)
    return names(config, sites, _GGUF_ENDS | {"positions": "position_embd"}, "blk.{}")


def gguf_moe_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, GGUF tensor name) of a mixture."""
    return gguf_sites(config, GGUF_MOE)


def read_gguf_decoder(switches: Switches, family: str, **attention: Any) -> ModelConfig:
    """The metadata of a GGUF file; `attention` has switches of `AttentionConfig`."""
    d_model, heads = switches.integer("embedding_length"), switches.integer("attention.head_count")
    head_dim = switches.integer("attention.key_length", d_model // heads)
    switches.only("attention.value_length", head_dim)
    switches.only("expert_count", 0)
    context_length = switches.integer("context_length")
    theta = switches.number("rope.freq_base", 10_000.0)
    scaling = None
    kind = switches.choice("rope.scaling.type", {k: k for k in ("none", "linear", "yarn")}, "none")
    if kind != "none":
        length = switches.integer("rope.scaling.original_context_length", context_length)
        scaling = RopeScaling(kind, switches.number("rope.scaling.factor"), length if kind == "yarn" else 0)
    switches.only("rope.dimension_count", head_dim)
    rope = RopeConfig(head_dim, theta, scaling)
    kv_heads = switches.integer("attention.head_count_kv", heads)
    mlp = MlpConfig(switches.integer("feed_forward_length"))
    layer = LayerConfig(AttentionConfig(heads, kv_heads, head_dim, rope, **attention), mlp)
    return checked(
        ModelConfig(
            family=family,
            vocab_size=switches.integer("vocab_size"),
            d_model=d_model,
            layers=(layer,) * switches.integer("block_count"),
            context_length=context_length,
            norm=NormConfig(eps=switches.number("attention.layer_norm_rms_epsilon")),
            tied=switches.flag("tied", False),
        )
    )


def paired_heads(config: ModelConfig) -> dict[str, int]:
    """Queries and keys, whose rows llama.cpp keeps in rotary pairs where the architecture is called "llama"."""
    attention = config.layers[0].attention
    return {"attention.q": attention.heads, "attention.k": attention.kv_heads}


def read_gguf_as_hf(switches: Switches, kind: str, rope_dim: int | None = None, **more: Any) -> dict[str, Any]:
    """The metadata of a GGUF file under the names of Hugging Face's config.json, for the family's own reader.

    Args:
        kind: `model_type`. more: the family's own switches.
        rope_dim: how much of each head has positions, where that is not all.
    """
    d_model, heads = switches.integer("embedding_length"), switches.integer("attention.head_count")
    rms = "attention.layer_norm_rms_epsilon"
    eps = switches.number(rms if switches.has(rms) else "attention.layer_norm_epsilon")
    head_dim = switches.integer("attention.key_length", d_model // heads)
    switches.only("attention.value_length", head_dim)
    switches.only("rope.dimension_count", head_dim if rope_dim is None else rope_dim)
    rope = stretch_as_hf(switches)
    if switches.has("rope.freq_base"):
        rope["rope_theta"] = switches.number("rope.freq_base")
    found = {
        "model_type": kind,
        "vocab_size": switches.integer("vocab_size"),
        "hidden_size": d_model,
        "num_hidden_layers": switches.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": switches.integer("attention.head_count_kv", heads),
        "max_position_embeddings": switches.integer("context_length"),
        "tie_word_embeddings": switches.flag("tied", False),
        "head_dim": head_dim,
        "rms_norm_eps": eps,
        **rope,
    }
    if switches.has("feed_forward_length"):
        found["intermediate_size"] = switches.integer("feed_forward_length")
    if switches.has("expert_count"):
        found |= {
            "num_experts": switches.integer("expert_count"),
            "num_experts_per_tok": switches.integer("expert_used_count"),
        }
    if switches.has("attention.sliding_window"):
        found["sliding_window"] = switches.integer("attention.sliding_window", least=0) or None
    return found | more


def stretch_as_hf(switches: Switches) -> dict[str, Any]:
    """How rotary positions are stretched, as `rope_scaling`; empty where they are not."""
    kind = switches.choice("rope.scaling.type", {k: k for k in ("none", "linear", "yarn")}, "none")
    if kind == "none":
        switches.ignore("rope.scaling.original_context_length")  # Phi-3 says it in any case
        return {}
    scaling = {"rope_type": kind, "factor": switches.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = switches.integer("rope.scaling.original_context_length")
        scaling["attention_factor"] = switches.maybe("rope.scaling.attn_factor")
    return {"rope_scaling": scaling}


def write_gguf_decoder(config: ModelConfig, *, bias: bool = False) -> Mapping[str, Any]:
    """The metadata that `read_gguf_decoder` reads, as llama.cpp's converter writes it.

    Args:
        bias: whether this family has biases on queries, keys and values in GGUF.

    Raises:
        BaseModelError: GGUF has no place for a switch of this config; names it.
    """
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    rope = attention.rope
    assert rope is not None and isinstance(mlp, MlpConfig)
    scaling = rope.scaling
    for what, wrong in {
        "biases": attention.bias != bias or attention.out_bias or mlp.bias,
        "a sliding window": any(layer.attention.window is not None for layer in config.layers),
        f"the activation {mlp.activation}": mlp.activation != "silu",
        "rotary positions on a part of each head": rope.dim != attention.head_dim,
        "rotary scaling llama3": scaling is not None and scaling.kind == "llama3",
        "yarn with settings of its own": scaling is not None
        and scaling.kind == "yarn"
        and scaling != RopeScaling("yarn", scaling.factor, scaling.original_length),
    }.items():
        if wrong:
            raise BaseModelError(f"{what} cannot be written as GGUF here; export with --to hf and convert from there")
    stretched: dict[str, Any] = {}
    if scaling is not None:
        stretched = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
        if scaling.kind == "yarn":
            stretched["rope.scaling.original_context_length"] = scaling.original_length
    return {
        "block_count": len(config.layers),
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": mlp.hidden,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        "rope.dimension_count": attention.head_dim,
        "rope.freq_base": rope.theta,
        "vocab_size": config.vocab_size,
        **stretched,
    }
