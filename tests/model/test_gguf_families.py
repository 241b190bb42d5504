"""GGUF files of further families as llama.cpp's converter writes them, beside transformers' reader where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pando.model.base import open_base
from pando.model.config import ExpertsConfig, ModelConfig, RopeScaling
from pando.model.context import RowContext
from pando.model.families import family, read_config
from pando.model.gguf_write import _pairs
from pando.model.transformer import Transformer
from tests.model import test_seq2seq, tiny
from tests.model.test_families import COMMON, DEEPSEEK, GEMMA, GPT2, MOE, NEOX
from tests.model.test_gguf import add_tokenizer
from tests.model.test_seq2seq import T5

WIDE = {"head_dim": 256, "query_pre_attn_scalar": 256}  # the only one that transformers takes from a file
UNTIED = {"tie_word_embeddings": False}
FAR = T5 | {"relative_attention_max_distance": 128, "num_decoder_layers": 3}  # which files do not say
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.25}
LATENT = DEEPSEEK | {"max_position_embeddings": 128, "rms_norm_eps": 1e-5}
DEEP_YARN = YARN | {"factor": 8.0, "attention_factor": None, "mscale": 0.707, "mscale_all_dim": 0.707}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma2": GEMMA | WIDE | {"model_type": "gemma2"},
    "gemma3": GEMMA | WIDE | {"model_type": "gemma3_text", "num_hidden_layers": 6},
    "gemma3 stretched": GEMMA
    | WIDE
    | {"model_type": "gemma3_text", "num_hidden_layers": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": COMMON | {"model_type": "phi3"},
    "starcoder2": COMMON | {"model_type": "starcoder2"},
    "gpt2": GPT2 | {"model_type": "gpt2", "n_positions": 1024},
    "olmo2": COMMON | {"model_type": "olmo2"},
    "olmo3": COMMON | {"model_type": "olmo3", "sliding_window": 8, "num_hidden_layers": 4},
    "olmo3 stretched": COMMON
    | {"model_type": "olmo3", "sliding_window": 8, "num_hidden_layers": 4, "rope_scaling": YARN},
    "gpt_neox": NEOX | {"model_type": "gpt_neox", "rotary_pct": 0.5},
    "gpt_neox, one after the other": NEOX | {"model_type": "gpt_neox", "use_parallel_residual": False},
    "t5": FAR | {"model_type": "t5"},
    "t5, gated": FAR | {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bert": NEOX | {"model_type": "bert", "type_vocab_size": 2},
    "modernbert": NEOX | {"model_type": "modernbert", "local_attention": 8, "norm_eps": 1e-5},
    "smollm3": COMMON | {"model_type": "smollm3", "num_hidden_layers": 4},
    "olmoe": COMMON | {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2moe": COMMON | MOE | UNTIED | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 40},
    "qwen3moe": COMMON | MOE | UNTIED | {"model_type": "qwen3_moe", "head_dim": 16, "norm_topk_prob": True},
    "deepseek2": LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None, "rope_scaling": DEEP_YARN, "n_group": 1},
    "deepseek2 in groups": LATENT | {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"},
    "deepseek2 of V3": LATENT | {"model_type": "deepseek_v3", "routed_scaling_factor": 2.0, "rope_scaling": DEEP_YARN},
    "deepseek2 of V3, older": LATENT | {"model_type": "deepseek_v3", "n_group": 1, "topk_group": 1},
    "mixtral": COMMON | {"model_type": "mixtral", "num_local_experts": 4},
}
THEIRS = ("gemma2", "gemma3", "starcoder2", "gpt2", "t5", "t5, gated")  # that transformers reads whatever their size


def write(path: Path, name: str) -> Transformer:
    """The file, and the model that it holds."""
    shape = read_config(SHAPES[name])
    model, form = tiny.model(shape), family(shape.family).gguf
    assert form is not None
    writer = gguf.GGUFWriter(path, form.architecture)
    metadata(writer, name, model)
    add_tokenizer(writer, {})
    parameters = {key: p.numpy() for key, p in model.named_parameters()}
    for ours, array in list(parameters.items()):
        if ours.endswith("norm.weight"):
            parameters[ours] = array + np.float32(form.norm_offset)
        for site, heads in form.paired(shape).items():
            if f".{site}." in ours:
                parameters[ours] = _pairs(array, heads)
    halves = {} if name.endswith("older") else {one.ours: one for one in form.joined(shape)}
    for ours, one in halves.items():
        (keys, (heads, _, plain)), (values, _) = one.theirs
        each = parameters[ours].reshape(heads, -1, parameters[ours].shape[-1])
        writer.add_tensor(keys, np.ascontiguousarray(each[:, :plain].swapaxes(1, 2)))
        writer.add_tensor(values, np.ascontiguousarray(each[:, plain:]))
    for ours, theirs in form.keys(shape):
        if ours in halves:
            continue
        array = parameters[ours]
        writer.add_tensor(theirs, np.ascontiguousarray(array[0] if array.shape[0] == 1 else array))
    for part in form.packed(shape):
        writer.add_tensor(part.theirs, np.concatenate([parameters[ours] for ours in part.ours]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def metadata(writer: gguf.GGUFWriter, name: str, model: Transformer) -> None:
    """What the converter writes for this architecture."""
    shape = model.config
    attention, mixture = shape.layers[0].attention, shape.layers[-1].mlp
    writer.add_block_count(len((shape.encoder or shape).layers))
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.d_model)
    writer.add_head_count(attention.heads)
    writer.add_vocab_size(shape.vocab_size)
    if shape.encoder is not None:
        t5_metadata(writer, shape)
        return
    writer.add_feed_forward_length(SHAPES[name].get("intermediate_size", 4 * shape.d_model))
    if attention.latent is not None:
        latent_metadata(writer, name, shape)
        return
    if name.startswith("gpt") or name in ("starcoder2", "bert", "modernbert"):
        writer.add_layer_norm_eps(shape.norm.eps)
    else:
        writer.add_layer_norm_rms_eps(shape.norm.eps)
    if name.startswith("gpt_neox"):
        writer.add_rope_dimension_count(attention.rope.dim)
        writer.add_parallel_residual(shape.layers[0].order == "parallel")
    elif name == "bert":
        writer.add_causal_attention(False)
        writer.add_token_type_count(shape.token_types)
        writer.add_pooling_type(gguf.PoolingType.CLS)
    elif name == "modernbert":
        writer.add_causal_attention(False)
        writer.add_rope_freq_base(160_000.0)
        writer.add_rope_freq_base_swa(10_000.0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_sliding_window(8)
        writer.add_sliding_window_pattern(3)
    elif name != "gpt2":
        writer.add_head_count_kv(attention.kv_heads)
        rope = next(one.attention.rope for one in reversed(shape.layers) if one.attention.rope is not None)
        writer.add_rope_freq_base(rope.theta)
        stretch(writer, rope.scaling)
    if name == "phi3":
        writer.add_rope_scaling_orig_ctx_len(shape.context_length)
        writer.add_rope_dimension_count(rope.dim)
        writer.add_sliding_window(0)
    if name.startswith("olmo3"):
        writer.add_sliding_window(8)
        writer.add_sliding_window_pattern([layer.attention.window is not None for layer in shape.layers])
    if name == "smollm3":
        writer.add_rope_dimension_count(attention.head_dim)
    if name.startswith("gemma") or name == "qwen3moe":
        writer.add_key_length(attention.head_dim)
        writer.add_value_length(attention.head_dim)
    if name.startswith("gemma"):
        writer.add_sliding_window(8)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if isinstance(mixture, ExpertsConfig):
        writer.add_expert_count(mixture.count)
        writer.add_expert_used_count(mixture.router.top_k)
        if name.startswith("qwen"):
            writer.add_expert_feed_forward_length(mixture.hidden)
        if mixture.shared:
            writer.add_expert_shared_feed_forward_length(mixture.shared)


def latent_metadata(writer: gguf.GGUFWriter, name: str, shape: ModelConfig) -> None:
    """The rest of it for DeepSeek: older files are those from before caches kept latent vectors."""
    attention, mixture, hf = shape.layers[0].attention, shape.layers[-1].mlp, SHAPES[name]
    latent, rope = attention.latent, attention.rope
    assert latent is not None and rope is not None and isinstance(mixture, ExpertsConfig)
    writer.add_layer_norm_rms_eps(shape.norm.eps)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_dimension_count(latent.rope_dim)
    if rope.scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.scaling.original_length)
        writer.add_rope_scaling_yarn_log_mul(0.1 * hf["rope_scaling"]["mscale_all_dim"])
    writer.add_leading_dense_block_count(hf["first_k_dense_replace"])
    if latent.q_rank is not None:
        writer.add_q_lora_rank(latent.q_rank)
    writer.add_kv_lora_rank(latent.rank)
    if name.endswith("older"):
        writer.add_head_count_kv(attention.heads)
        writer.add_key_length(attention.head_dim)
        writer.add_value_length(latent.value_dim)
    else:
        writer.add_head_count_kv(1)
        writer.add_key_length(latent.rank + latent.rope_dim)
        writer.add_value_length(latent.rank)
        writer.add_key_length_mla(attention.head_dim)
        writer.add_value_length_mla(latent.value_dim)
    writer.add_expert_feed_forward_length(mixture.hidden)
    writer.add_expert_count(mixture.count)
    writer.add_expert_used_count(mixture.router.top_k)
    writer.add_expert_shared_count(mixture.shared // mixture.hidden)
    writer.add_expert_weights_scale(mixture.router.scale)
    if mixture.router.groups > 1:
        writer.add_expert_group_count(mixture.router.groups)
        writer.add_expert_group_used_count(mixture.router.top_groups)
    if shape.family == "deepseek_v3":
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def stretch(writer: gguf.GGUFWriter, scaling: RopeScaling | None) -> None:
    """Rotary positions that are stretched."""
    if scaling is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        assert scaling.attention_factor is not None
        writer.add_rope_scaling_orig_ctx_len(scaling.original_length)
        writer.add_rope_scaling_attn_factors(scaling.attention_factor)


def t5_metadata(writer: gguf.GGUFWriter, shape: ModelConfig) -> None:
    """The rest of it for an encoder-decoder."""
    attention = shape.layers[0].attention
    assert shape.encoder is not None and attention.relative is not None
    writer.add_feed_forward_length(shape.layers[0].mlp.hidden)
    writer.add_decoder_block_count(len(shape.layers))
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_relative_attn_buckets_count(attention.relative.buckets)
    writer.add_layer_norm_eps(shape.norm.eps)
    writer.add_layer_norm_rms_eps(shape.norm.eps)
    writer.add_decoder_start_token_id(shape.start_token)


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if model.config.encoder is not None:
            return test_seq2seq.logits(model, tokens, tokens[:, :20])
        states = model(tokens, RowContext(tokens, both_ways=model.config.both_ways))
        return model.head(states) if model.config.predicts else states


TOKENS = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_is_the_model(name: str, tmp_path: Path, home: Path) -> None:
    wanted = write(tmp_path / "m.gguf", name)
    base = open_base(tmp_path / "m.gguf")
    assert base.config.layers == wanted.config.layers and base.config.family == wanted.config.family
    assert (logits(base.module(), TOKENS) - logits(wanted, TOKENS)).abs().max() < 1e-5
    assert base.embedding.known == (name == "bert")
    assert base.embedding.pooling == ("first" if name == "bert" else "mean")


@pytest.mark.parametrize("name", THEIRS)
def test_transformers_reads_the_same(name: str, tmp_path: Path, home: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    shape = write(tmp_path / "m.gguf", name).config
    kind, more, encoder = AutoModelForCausalLM, {}, shape.encoder
    if encoder is not None:  # of these it reads the weights only right
        values = {key: value for key, value in family("t5").hf_config(shape).items() if key != "model_type"}
        kind, more = AutoModelForSeq2SeqLM, {"config": AutoConfig.for_model("t5", **values)}
    theirs = kind.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, **more).eval()
    ours = logits(open_base(tmp_path / "m.gguf").module(), TOKENS)
    with torch.no_grad():
        wanted = theirs(TOKENS) if encoder is None else theirs(input_ids=TOKENS, decoder_input_ids=TOKENS[:, :20])
        assert (ours - wanted.logits).abs().max() < 1e-4
