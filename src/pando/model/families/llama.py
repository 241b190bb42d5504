"""Llama 1-3 and models of the same block, SmolLM2 among them: RMSNorm, rotary positions, grouped-query attention,
SwiGLU, a tied or untied head.

Papers: arXiv 2302.13971, 2307.09288, 2407.21783. Not covered: tensor slices of pretraining (`pretraining_tp` above 1),
dropout, quantised weights, the scalings of rotary positions "dynamic" and "longrope".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.errors import BaseModelError
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig, RopeScaling
from pando.model.families import Family, Gguf
from pando.model.families.reading import Switches, read_rope, write_rope

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_SITES = {  # ours: (Hugging Face, GGUF)
    "attention_norm": ("input_layernorm", "attn_norm"),
    "attention.q": ("self_attn.q_proj", "attn_q"),
    "attention.k": ("self_attn.k_proj", "attn_k"),
    "attention.v": ("self_attn.v_proj", "attn_v"),
    "attention.o": ("self_attn.o_proj", "attn_output"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}
_ENDS = {"embed": ("model.embed_tokens", "token_embd"), "norm": ("model.norm", "output_norm")}
_HEAD = {"unembed": ("lm_head", "output")}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    d_model, heads = switches.integer("hidden_size"), switches.integer("num_attention_heads")
    head_dim = switches.integer("head_dim", d_model // heads)
    context_length = switches.integer("max_position_embeddings", 2048)
    rope = read_rope(switches, head_dim, context_length)
    kv_heads = switches.integer("num_key_value_heads", heads)
    attention = AttentionConfig(heads, kv_heads, head_dim, rope, switches.flag("attention_bias", False))
    activation = switches.choice("hidden_act", _ACTIVATIONS, "silu")
    mlp = MlpConfig(switches.integer("intermediate_size"), activation, switches.flag("mlp_bias", False))
    switches.only("pretraining_tp", 1)
    switches.only("attention_dropout", 0.0)
    switches.only("rope_interleaved", False)
    config = ModelConfig(
        family="llama",
        vocab_size=switches.integer("vocab_size"),
        d_model=d_model,
        layers=(LayerConfig(attention, mlp),) * switches.integer("num_hidden_layers"),
        context_length=context_length,
        norm_eps=switches.number("rms_norm_eps", 1e-6),
        tied=switches.flag("tie_word_embeddings", False),
        initializer_range=switches.number("initializer_range", 0.02),
    )
    switches.close()
    return _checked(config)


def _checked(config: ModelConfig) -> ModelConfig:
    attention = config.layers[0].attention
    if attention.heads % attention.kv_heads or attention.rope.dim % 2 or attention.rope.dim > attention.head_dim:
        raise BaseModelError(
            f"{attention.heads} attention heads of {attention.head_dim} dimensions cannot share {attention.kv_heads} "
            f"key-value heads with {attention.rope.dim} rotary dimensions (config.json)"
        )
    return config


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "mlp_bias": mlp.bias,
        "initializer_range": config.initializer_range,
        **write_rope(attention.rope, attention.head_dim),
    }


def _names(config: ModelConfig, which: int, layers: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in (_ENDS | ({} if config.tied else _HEAD)).items():
        yield f"{ours}.weight", f"{theirs[which]}.weight"
    for i, layer in enumerate(config.layers):
        for ours, theirs in _SITES.items():
            biased = {"attention.": layer.attention.bias, "mlp.": layer.mlp.bias}
            for kind in ("weight", "bias"):
                if kind == "weight" or any(ours.startswith(part) and on for part, on in biased.items()):
                    yield f"layers.{i}.{ours}.{kind}", f"{layers.format(i)}.{theirs[which]}.{kind}"


def _gguf_config(switches: Switches) -> ModelConfig:
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
    layer = LayerConfig(
        AttentionConfig(heads, kv_heads, head_dim, rope), MlpConfig(switches.integer("feed_forward_length"))
    )
    return _checked(
        ModelConfig(
            family="llama",
            vocab_size=switches.integer("vocab_size"),
            d_model=d_model,
            layers=(layer,) * switches.integer("block_count"),
            context_length=context_length,
            norm_eps=switches.number("attention.layer_norm_rms_epsilon"),
            tied=switches.flag("tied", False),
        )
    )


def _paired(config: ModelConfig) -> dict[str, int]:
    attention = config.layers[0].attention
    return {"attention.q": attention.heads, "attention.k": attention.kv_heads}


FAMILY = Family(
    name="llama",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: _names(config, 0, "model.layers.{}"),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    gguf=Gguf("llama", _gguf_config, lambda config: _names(config, 1, "blk.{}"), _paired),
)
