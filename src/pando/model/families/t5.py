"""The t5 family (T5 1.0 and 1.1, Flan-T5, mT5): an encoder and a decoder, distances in buckets, RMSNorm.

Papers: arXiv 1910.10683, 2210.11416, 2010.11934. Not covered: an encoder or a decoder alone, classification heads,
dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig, RelativeConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import Shape, checked, names
from pando.model.families.reading import Switches

_ACTIVATIONS = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True)}
_CALLED = {"relu": ("relu",), "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh"), "silu": ("silu", "swish")}
_CONTEXT = 512  # the length that all of these were pretrained with; files seldom say it
_CLASSES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
_MLP = {"mlp.up": "DenseReluDense.wi", "mlp.down": "DenseReluDense.wo"}
_GATED = {"mlp.gate": "DenseReluDense.wi_0", "mlp.up": "DenseReluDense.wi_1", "mlp.down": "DenseReluDense.wo"}
_ENDS = {"relative": "block.0.layer.0.SelfAttention.relative_attention_bias", "norm": "final_layer_norm"}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    switches.ignore("dropout_rate", "classifier_dropout", "initializer_factor", "output_past", "task_specific_params")
    switches.only("is_encoder_decoder", True)
    switches.only("is_decoder", False)
    activation, gated = switches.choice("feed_forward_proj", _ACTIVATIONS, "relu")
    switches.only("is_gated_act", gated)
    switches.only("dense_act_fn", *_CALLED[activation])  # transformers goes by this one
    kind = str(hf["model_type"])
    heads, head_dim = switches.integer("num_heads"), switches.integer("d_kv", 64)
    relative = RelativeConfig(
        switches.integer("relative_attention_num_buckets", 32), switches.integer("relative_attention_max_distance", 128)
    )
    attention = AttentionConfig(heads, heads, head_dim, None, scale=1.0, relative=relative)
    mlp = MlpConfig(switches.integer("d_ff"), activation, gated=gated)
    depth = switches.integer("num_layers")
    tied = switches.flag("tie_word_embeddings", True)
    d_model = switches.integer("d_model")
    # 1.0 ties the head to the embedding, whose vectors are long. transformers 5 says of all heads that they are tied,
    # and of those that are not that what they are given is not scaled.
    scaled = switches.flag("scale_decoder_outputs", tied) if kind == "t5" else False
    tied = tied and (scaled or kind != "t5")
    common: dict[str, Any] = {
        "family": kind,
        "vocab_size": switches.integer("vocab_size"),
        "d_model": d_model,
        "context_length": switches.integer("n_positions", _CONTEXT),
        "norm": NormConfig(eps=switches.number("layer_norm_epsilon", 1e-6)),
    }
    start = switches.token("decoder_start_token_id", "pad_token_id")
    encoder = ModelConfig(
        **common, layers=(LayerConfig(attention, mlp),) * depth, tied=True, both_ways=True, predicts=False
    )
    layer = LayerConfig(attention, mlp, cross=AttentionConfig(heads, heads, head_dim, None, scale=1.0))
    found = ModelConfig(
        **common,
        layers=(layer,) * switches.integer("num_decoder_layers", depth),
        tied=tied,
        head_scale=d_model**-0.5 if scaled else 1.0,
        encoder=encoder,
        start_token=start,
    )
    switches.close()
    checked(encoder)
    return checked(found)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    attention, mlp, encoder = config.layers[0].attention, config.layers[0].mlp, config.encoder
    assert encoder is not None and attention.relative is not None and isinstance(mlp, MlpConfig)
    written = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": attention.head_dim,
        "d_ff": mlp.hidden,
        "num_layers": len(encoder.layers),
        "num_decoder_layers": len(config.layers),
        "num_heads": attention.heads,
        "relative_attention_num_buckets": attention.relative.buckets,
        "relative_attention_max_distance": attention.relative.furthest,
        "feed_forward_proj": next(k for k, v in _ACTIVATIONS.items() if v == (mlp.activation, mlp.gated)),
        "layer_norm_epsilon": config.norm.eps,
        "n_positions": config.context_length,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.start_token,
        "dropout_rate": 0.0,
    }
    return written | ({"scale_decoder_outputs": config.head_scale != 1} if config.family == "t5" else {})


def _keys(config: ModelConfig) -> Iterator[tuple[str, str]]:
    mlp = config.layers[0].mlp
    assert config.encoder is not None and isinstance(mlp, MlpConfig)
    yield "embed.weight", "shared.weight"
    if not config.tied:
        yield "unembed.weight", "lm_head.weight"
    for stack, ours, theirs in ((config.encoder, "encoder.", "encoder"), (config, "", "decoder")):
        last = 1 if stack.both_ways else 2
        sites = {f"attention.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"}
        sites |= {"attention_norm": "layer.0.layer_norm", "mlp_norm": f"layer.{last}.layer_norm"}
        sites |= {site: f"layer.{last}.{name}" for site, name in (_GATED if mlp.gated else _MLP).items()}
        if not stack.both_ways:
            sites |= {f"cross.{part}": f"layer.1.EncDecAttention.{part}" for part in "qkvo"}
            sites |= {"cross_norm": "layer.1.layer_norm"}
        ends = {end: f"{theirs}.{name}" for end, name in _ENDS.items()}
        for name, key in names(stack, sites, ends, theirs + ".block.{}"):
            yield ours + name, key


def _gguf_config(switches: Switches) -> ModelConfig:
    """How far the last bucket reaches is not said there."""
    switches.ignore("attention.layer_norm_epsilon")  # said once more
    head_dim = switches.integer("attention.key_length")
    switches.only("attention.value_length", head_dim)
    depth = switches.integer("block_count")
    return _config(
        {
            "model_type": "t5",
            "vocab_size": switches.integer("vocab_size"),
            "d_model": switches.integer("embedding_length"),
            "d_kv": head_dim,
            "d_ff": switches.integer("feed_forward_length"),
            "num_layers": depth,
            "num_decoder_layers": switches.integer("decoder_block_count", depth),
            "num_heads": switches.integer("attention.head_count"),
            "relative_attention_num_buckets": switches.integer("attention.relative_buckets_count"),
            "feed_forward_proj": "gated-gelu" if switches.flag("gated", False) else "relu",
            "is_gated_act": switches.flag("gated", False),
            "layer_norm_epsilon": switches.number("attention.layer_norm_rms_epsilon"),
            "n_positions": switches.integer("context_length"),
            "tie_word_embeddings": switches.flag("tied", False),
            "decoder_start_token_id": switches.token("decoder_start_token_id"),
        }
    )


def _gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    assert config.encoder is not None
    yield "embed.weight", "token_embd.weight"
    if not config.tied:
        yield "unembed.weight", "output.weight"
    sites = {f"attention.{part}": f"attn_{part}" for part in "qkvo"} | {"attention_norm": "attn_norm"}
    sites |= {f"cross.{part}": f"cross_attn_{part}" for part in "qkvo"} | {"cross_norm": "cross_attn_norm"}
    sites |= {f"mlp.{part}": f"ffn_{part}" for part in ("gate", "up", "down")} | {"mlp_norm": "ffn_norm"}
    for stack, ours, theirs in ((config.encoder, "encoder.", "enc"), (config, "", "dec")):
        ends = {"relative": f"{theirs}.blk.0.attn_rel_b", "norm": f"{theirs}.output_norm"}
        for name, key in names(stack, sites, ends, theirs + ".blk.{}"):
            yield ours + name, key


def _fresh(shape: Shape, theta: float, more: Mapping[str, Any]) -> ModelConfig:
    """T5 1.1: gated, a head of its own, scores as they are; it has no rotary positions."""
    cross = shape.attention(None, scale=1.0)
    layer = LayerConfig(replace(cross, relative=RelativeConfig()), replace(shape, activation="gelu_tanh").mlp())
    reading, writing = ((one,) * shape.depth for one in (layer, replace(layer, cross=cross)))
    common = {**more, "norm": NormConfig(eps=1e-6)}
    encoder = shape.model("t5", reading, both_ways=True, predicts=False, **common | {"tied": True})
    return shape.model("t5", writing, encoder=encoder, **common)


FAMILY = Family(
    name="t5",
    group="encoder-decoder",
    fresh=_fresh,
    grouped=False,
    ties=False,
    rotary=False,
    config=_config,
    hf_config=_hf_config,
    keys=_keys,
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    gguf=Gguf(
        "t5",
        _gguf_config,
        None,
        _gguf_names,
        ignored=(r"dec\.blk\.0\.cross_attn_rel_b\.weight",),
    ),
    copies=(r"(encoder|decoder)\.embed_tokens\.weight",),
)
