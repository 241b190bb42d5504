"""What decoders of the llama kind share: the names of their switches, weights and GGUF metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pando.errors import BaseModelError
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig, RopeScaling
from pando.model.families.reading import Switches, read_rope, write_rope

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
SITES = {  # ours: (Hugging Face, GGUF)
    "attention_norm": ("input_layernorm", "attn_norm"),
    "attention.q": ("self_attn.q_proj", "attn_q"),
    "attention.k": ("self_attn.k_proj", "attn_k"),
    "attention.v": ("self_attn.v_proj", "attn_v"),
    "attention.o": ("self_attn.o_proj", "attn_output"),
    "attention.q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}
_QK_NORMS = ("attention.q_norm", "attention.k_norm")
_ENDS = {"embed": ("model.embed_tokens", "token_embd"), "norm": ("model.norm", "output_norm")}
_HEAD = {"unembed": ("lm_head", "output")}


def read_decoder(switches: Switches, family: str, *, qk_norm: bool, mlp_bias: bool) -> ModelConfig:
    """A Hugging Face config; the family has read its own switches before.

    Args:
        qk_norm: whether this family norms queries and keys.
        mlp_bias: whether it has the switch of that name.
    """
    d_model, heads = switches.integer("hidden_size"), switches.integer("num_attention_heads")
    head_dim = switches.integer("head_dim", d_model // heads)
    context_length = switches.integer("max_position_embeddings", 2048)
    rope = read_rope(switches, head_dim, context_length)
    kv_heads = switches.integer("num_key_value_heads", heads)
    bias = switches.flag("attention_bias", False)
    activation = switches.choice("hidden_act", _ACTIVATIONS, "silu")
    mlp = MlpConfig(switches.integer("intermediate_size"), activation, mlp_bias and switches.flag("mlp_bias", False))
    switches.only("attention_dropout", 0.0)
    layer = LayerConfig(AttentionConfig(heads, kv_heads, head_dim, rope, bias, qk_norm), mlp)
    config = ModelConfig(
        family=family,
        vocab_size=switches.integer("vocab_size"),
        d_model=d_model,
        layers=(layer,) * switches.integer("num_hidden_layers"),
        context_length=context_length,
        norm_eps=switches.number("rms_norm_eps", 1e-6),
        tied=switches.flag("tie_word_embeddings", False),
        initializer_range=switches.number("initializer_range", 0.02),
    )
    switches.close()
    return _checked(config)


def write_decoder(config: ModelConfig, architecture: str, *, mlp_bias: bool) -> dict[str, Any]:
    """The Hugging Face config of what `read_decoder` reads, with the switch `mlp_bias` where the family has it."""
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": _HF_ACTIVATIONS[mlp.activation],
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": attention.bias,
        **({"mlp_bias": mlp.bias} if mlp_bias else {}),
        "initializer_range": config.initializer_range,
        **write_rope(attention.rope, attention.head_dim),
    }


def hf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key)."""
    return _names(config, 0, "model.layers.{}")


def gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, GGUF tensor name)."""
    return _names(config, 1, "blk.{}")


def _names(config: ModelConfig, which: int, layers: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in (_ENDS | ({} if config.tied else _HEAD)).items():
        yield f"{ours}.weight", f"{theirs[which]}.weight"
    for i, layer in enumerate(config.layers):
        for ours, theirs in SITES.items():
            if ours in _QK_NORMS and not layer.attention.qk_norm:
                continue
            biased = {"attention.": layer.attention.bias and ours not in _QK_NORMS, "mlp.": layer.mlp.bias}
            for kind in ("weight", "bias"):
                if kind == "weight" or any(ours.startswith(part) and on for part, on in biased.items()):
                    yield f"layers.{i}.{ours}.{kind}", f"{layers.format(i)}.{theirs[which]}.{kind}"


def read_gguf_decoder(switches: Switches, family: str, *, qk_norm: bool) -> ModelConfig:
    """The metadata of a GGUF file."""
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
    attention = AttentionConfig(heads, kv_heads, head_dim, rope, qk_norm=qk_norm)
    layer = LayerConfig(attention, MlpConfig(switches.integer("feed_forward_length")))
    return _checked(
        ModelConfig(
            family=family,
            vocab_size=switches.integer("vocab_size"),
            d_model=d_model,
            layers=(layer,) * switches.integer("block_count"),
            context_length=context_length,
            norm_eps=switches.number("attention.layer_norm_rms_epsilon"),
            tied=switches.flag("tied", False),
        )
    )


def write_gguf_decoder(config: ModelConfig) -> Mapping[str, Any]:
    """The metadata that `read_gguf_decoder` reads, as llama.cpp's converter writes it.

    Raises:
        BaseModelError: GGUF has no place for a switch of this config; names it.
    """
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    rope, scaling = attention.rope, attention.rope.scaling
    for what, wrong in {
        "biases": attention.bias or mlp.bias,
        f"the activation {mlp.activation}": mlp.activation != "silu",
        "rotary positions on a part of each head": rope.dim != attention.head_dim,
        "rotary scaling llama3": scaling is not None and scaling.kind == "llama3",
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
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": attention.head_dim,
        "rope.freq_base": rope.theta,
        "vocab_size": config.vocab_size,
        **stretched,
    }


def _checked(config: ModelConfig) -> ModelConfig:
    attention = config.layers[0].attention
    if attention.heads % attention.kv_heads or attention.rope.dim % 2 or attention.rope.dim > attention.head_dim:
        raise BaseModelError(
            f"{attention.heads} attention heads of {attention.head_dim} dimensions cannot share {attention.kv_heads} "
            f"key-value heads with {attention.rope.dim} rotary dimensions (config.json)"
        )
    return config
