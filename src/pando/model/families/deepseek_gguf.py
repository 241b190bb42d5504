"""How llama.cpp keeps DeepSeek-V2 and V3, and what is built like them: `general.architecture` "deepseek2"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pando.model.config import ModelConfig
from pando.model.families import Gguf, Joined
from pando.model.families.decoder_gguf import GGUF_MOE, gguf_sites, stretch_as_hf
from pando.model.families.reading import Switches

if TYPE_CHECKING:
    from torch import Tensor

_SITES = GGUF_MOE | {
    "attention.q_a": "attn_q_a",
    "attention.q_norm": "attn_q_a_norm",
    "attention.kv_a": "attn_kv_a_mqa",
    "attention.kv_norm": "attn_kv_a_norm",
    "attention.kv_b": "attn_kv_b",
}


def deepseek_gguf(kind: str, read: Callable[[dict[str, Any]], ModelConfig]) -> Gguf:
    """The form of `kind` ("deepseek_v2", "deepseek_v3"), whose config.json `read` reads. The weights of a token's
    experts add up to one in V3 alone, which is how files tell them apart."""
    told_by = "expert_weights_norm" if kind == "deepseek_v3" else None
    return Gguf(
        "deepseek2", lambda switches: read(_as_hf(switches, kind)), None, _names, joined=_joined, told_by=told_by
    )


def _as_hf(switches: Switches, kind: str) -> dict[str, Any]:
    """The metadata under the names of config.json."""
    heads, rank = switches.integer("attention.head_count"), switches.integer("attention.kv_lora_rank")
    turned = switches.integer("rope.dimension_count")
    suffix = ""
    if switches.has("attention.key_length_mla"):  # newer files: what a cache keeps of a token is one key of all heads
        suffix = "_mla"
        switches.only("attention.key_length", rank + turned)
        switches.only("attention.value_length", rank)
    switches.only("attention.head_count_kv", 1 if suffix else heads)
    key, value = (switches.integer(f"attention.{part}_length{suffix}") for part in ("key", "value"))
    sigmoid = kind == "deepseek_v3"
    switches.only("expert_gating_func", *((2,) if sigmoid else (1, 0)))
    groups = switches.integer("expert_group_count", 1)
    found = {
        "model_type": kind,
        "vocab_size": switches.integer("vocab_size"),
        "hidden_size": switches.integer("embedding_length"),
        "num_hidden_layers": switches.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": switches.integer("feed_forward_length"),
        "max_position_embeddings": switches.integer("context_length"),
        "rms_norm_eps": switches.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": switches.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": switches.flag("tied", False),
        "kv_lora_rank": rank,
        "q_lora_rank": switches.integer("attention.q_lora_rank", 0, least=0) or None,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
        "first_k_dense_replace": switches.integer("leading_dense_block_count", 0, least=0),
        "n_routed_experts": switches.integer("expert_count"),
        "num_experts_per_tok": switches.integer("expert_used_count"),
        "moe_intermediate_size": switches.integer("expert_feed_forward_length"),
        "n_shared_experts": switches.integer("expert_shared_count"),
        "routed_scaling_factor": switches.number("expert_weights_scale", 1.0),
        "norm_topk_prob": switches.flag("expert_weights_norm", False),
        "n_group": groups,
        "topk_group": switches.integer("expert_group_used_count", 1),
        **stretch_as_hf(switches),
    }
    if not sigmoid:
        found["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    if switches.has("rope.scaling.yarn_log_multiplier"):  # a tenth of both multipliers, which are the same in all files
        both = round(10 * switches.number("rope.scaling.yarn_log_multiplier"), 6)
        found["rope_scaling"] |= {"mscale": both, "mscale_all_dim": both}
    return found


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    latent = config.layers[0].attention.latent
    assert latent is not None
    queries = {} if latent.q_rank is None else {"attention.q": "attn_q_b"}
    for ours, theirs in gguf_sites(config, _SITES | queries):
        yield ours, theirs.replace("ffn_gate_inp.bias", "exp_probs_b.bias")


def _joined(config: ModelConfig) -> Iterator[Joined]:
    """What turns latent vectors into keys, the other way round, and into values, head by head."""
    for i, layer in enumerate(config.layers):
        attention, latent = layer.attention, layer.attention.latent
        assert latent is not None
        keys = (attention.heads, latent.rank, attention.head_dim - latent.rope_dim)
        values = (attention.heads, latent.value_dim, latent.rank)
        yield Joined(
            f"layers.{i}.attention.kv_b.weight",
            ((f"blk.{i}.attn_k_b.weight", keys), (f"blk.{i}.attn_v_b.weight", values)),
            _one_after_the_other,
        )


def _one_after_the_other(parts: Sequence[Tensor]) -> Tensor:
    import torch

    keys, values = parts
    return torch.cat((keys.mT, values), dim=1).flatten(0, 1)
