"""The gpt_neox family (GPT-NeoX, Pythia): LayerNorm, attention and feed-forward layer side by side, positions on a
quarter of each head, queries, keys and values in one matrix, head by head.

Papers: arXiv 2204.06745, 2304.01373. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf, Packed
from pando.model.families.decoder import finish, names, packed, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_sites, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_SITES = {
    "attention_norm": "input_layernorm",
    "attention.o": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
_ENDS = {"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "unembed": "embed_out"}
_LAYERS = "gpt_neox.layers.{}"
_FUSED = {"attention.query_key_value": ("attention.q", "attention.k", "attention.v")}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"hidden_act": "gelu"} | hf)
    switches.ignore("hidden_dropout", "classifier_dropout", "is_decoder")  # of training
    shape = read_shape(switches)
    theta, share = switches.number("rotary_emb_base", 10_000.0), switches.number("rotary_pct", 0.25)
    switches.only("rope_theta", theta)  # it has names of its own for both
    switches.only("partial_rotary_factor", share)
    rope = read_rope(switches, shape.head_dim, shape.context_length, theta, share)
    bias = switches.flag("attention_bias", True)
    layer = LayerConfig(
        shape.attention(rope, bias=bias, out_bias=bias),
        shape.mlp(bias=True, gated=False),
        order="parallel" if switches.flag("use_parallel_residual", True) else "pre",
    )
    norm = NormConfig("layer", switches.number("layer_norm_eps", 1e-5), bias=True)
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "gpt_neox", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    rope = layer.attention.rope
    assert rope is not None
    switches: dict[str, Any] = {
        "rotary_pct": rope.dim / layer.attention.head_dim,
        "use_parallel_residual": layer.order == "parallel",
        "attention_bias": layer.attention.bias,
        "hidden_dropout": 0.0,
    }
    written = write_decoder(config, "GPTNeoXForCausalLM", **switches)
    for other in ("num_key_value_heads", "head_dim", "partial_rotary_factor"):
        written.pop(other, None)
    written["layer_norm_eps"] = written.pop("rms_norm_eps")
    written["rotary_emb_base"] = written.pop("rope_theta")
    return written


def _gguf_config(switches: Switches) -> ModelConfig:
    """The activation is not said there."""
    turned = switches.integer("rope.dimension_count")
    hf = read_gguf_as_hf(switches, "gpt_neox", turned)
    del hf["num_key_value_heads"]
    hf["rotary_pct"] = turned / hf.pop("head_dim")
    hf["layer_norm_eps"] = hf.pop("rms_norm_eps")
    return _config(hf | {"use_parallel_residual": switches.flag("use_parallel_residual", True)})


def _gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    return gguf_sites(config, {}, _FUSED["attention.query_key_value"])


def _gguf_packed(config: ModelConfig) -> Iterator[Packed]:
    return packed(config, "blk.{}", {"attn_qkv": _FUSED["attention.query_key_value"]})


def _packed(config: ModelConfig) -> Iterator[Packed]:
    return packed(config, _LAYERS, _FUSED, heads=config.layers[0].attention.heads)


FAMILY = Family(
    name="gpt_neox",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: names(config, _SITES, _ENDS, _LAYERS),
    packed=_packed,
    gguf=Gguf("gptneox", _gguf_config, None, _gguf_names, _gguf_packed),
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
