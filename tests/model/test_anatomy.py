"""What a base costs, from its config alone: published numbers, and what a profiler counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pando.engine.quantise import quantise
from pando.errors import BaseModelError
from pando.model import costs
from pando.model.anatomy import config_of, facts
from pando.model.checkpoint import load_model, read_json
from pando.model.context import RowContext
from pando.model.families import read_config
from pando.report.anatomy import compared, picture
from tests.model import test_encoders, test_seq2seq
from tests.model.test_encoders import ENCODERS
from tests.model.test_families import CASES, theirs


def hf(kind: str, d: int, hidden: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    """A config.json as these models' pages show it."""
    shape = {"hidden_size": d, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        "model_type": kind,
        **shape,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
        **more,
    }


DEEPSEEK = {
    "moe_layer_freq": 1, "norm_topk_prob": True, "num_experts_per_tok": 8, "n_routed_experts": 256, "ep_size": 1,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8,
    "topk_group": 4, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1, "rope_theta": 10000, "max_position_embeddings": 163840, "hidden_act": "silu",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn",
        "original_max_position_embeddings": 4096,
    },
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
QWEN3_MOE = {
    "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "max_window_layers": 48, "use_sliding_window": False,
    "sliding_window": None, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "output_router_logits": False,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_ctx": 1024,
    "vocab_size": 50257, "activation_function": "gelu_new", "summary_type": "cls_index", "resid_pdrop": 0.1,
    "task_specific_params": {"text-generation": {"do_sample": True}}, "architectures": ["GPT2LMHeadModel"],
}  # fmt: skip
PYTHIA = {
    "model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 8, "vocab_size": 50304, "rotary_pct": 0.25, "rotary_emb_base": 10000,
    "use_parallel_residual": True, "max_position_embeddings": 2048, "hidden_act": "gelu", "layer_norm_eps": 1e-05,
}  # fmt: skip
GEMMA2 = {
    "head_dim": 256, "query_pre_attn_scalar": 256, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid",
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096, "sliding_window_size": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "max_position_embeddings": 8192,
}  # fmt: skip
STARCODER2 = {
    "attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh",
    "initializer_range": 0.018042, "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-05,
    "norm_type": "layer_norm", "rope_theta": 999999.4420358813, "use_bias": True,
}  # fmt: skip
SMOLLM3 = {
    "attention_bias": False, "attention_dropout": 0.0, "max_position_embeddings": 65536, "max_window_layers": 28,
    "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "pretraining_tp": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False,
}  # fmt: skip
FLAN_T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_ff": 5120, "d_kv": 64, "d_model": 2048,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "n_positions": 512,
    "num_decoder_layers": 24, "num_heads": 32, "num_layers": 24, "output_past": True, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
    "transformers_version": "4.23.1", "use_cache": True, "vocab_size": 32128, "torch_dtype": "float32",
    "task_specific_params": {"summarization": {"prefix": "summarize: "}},
}  # fmt: skip
BART = {
    "model_type": "bart", "architectures": ["BartModel"], "activation_dropout": 0.1, "activation_function": "gelu",
    "add_bias_logits": False, "add_final_layer_norm": False, "attention_dropout": 0.1, "bos_token_id": 0,
    "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 2,
    "dropout": 0.1, "early_stopping": True, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
    "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 2, "forced_eos_token_id": 2,
    "forced_bos_token_id": 0, "gradient_checkpointing": False, "init_std": 0.02, "is_encoder_decoder": True,
    "max_position_embeddings": 1024, "no_repeat_ngram_size": 3, "normalize_before": False, "normalize_embedding": True,
    "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": False, "vocab_size": 50265,
}  # fmt: skip
# total and active parameters in billions, as their cards and papers state them (some round, some cut off)
CARDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "Mixtral-8x7B": (
        hf("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2), "46.7", "12.9"
    ),
    "DeepSeek-V3": (hf("deepseek_v3", 7168, 18432, 61, 128, 128, 129280, **DEEPSEEK), "671", "37"),
    "Llama-3-8B": (hf("llama", 4096, 14336, 32, 32, 8, 128256, rope_theta=500000.0), "8.03", "8.03"),
    "Qwen3-30B-A3B": (hf("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, **QWEN3_MOE), "30.5", "3.3"),
    "OLMoE-1B-7B": (hf("olmoe", 2048, 1024, 16, 16, 16, 50304, num_experts=64, clip_qkv=None), "6.9", "1.3"),
    "Mistral-7B-v0.1": (hf("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096), "7.24", "7.24"),
    "Codestral-22B-v0.1": (
        hf(
            "mistral", 6144, 16384, 56, 48, 8, 32768, sliding_window=None, rope_theta=1e6, attention_dropout=0.0,
            max_position_embeddings=32768, rms_norm_eps=1e-05, tie_word_embeddings=False, hidden_act="silu",
        ),
        "22.2", "22.2",
    ),
    "Qwen2.5-0.5B": (hf("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True), "0.49", "0.49"),
    "gemma-2-9b": (hf("gemma2", 3584, 14336, 42, 16, 8, 256000, **GEMMA2), "9.24", "9.24"),
    "Phi-3-mini-4k": (hf("phi3", 3072, 8192, 32, 32, 32, 32064, sliding_window=2047), "3.82", "3.82"),
    "starcoder2-3b": (
        hf("starcoder2", 3072, 12288, 30, 24, 2, 49152, sliding_window=4096, **STARCODER2), "3.03", "3.03"
    ),
    "SmolLM3-3B": (hf("smollm3", 2048, 11008, 36, 16, 4, 128256, tie_word_embeddings=True, **SMOLLM3), "3.08", "3.08"),
    "pythia-1b": (PYTHIA, "1.01", "1.01"),
    "gpt2": (GPT2, "0.124", "0.124"),
    "flan-t5-xl": (FLAN_T5, "2.85", "2.85"),
    "t5-small": (
        FLAN_T5
        | {"d_model": 512, "d_ff": 2048, "num_heads": 8, "num_layers": 6, "num_decoder_layers": 6}
        | {"feed_forward_proj": "relu", "tie_word_embeddings": True},
        "0.0605", "0.0605",
    ),
    "bart-base": (BART, "0.139", "0.139"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_parameters_are_those_of_the_card(name: str, tmp_path: Path) -> None:
    values, total, active = CARDS[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config, called, _ = config_of(tmp_path)
    assert called == tmp_path.name
    found = facts(config, name)["parameters"]
    for count, said in ((found["total"], total), (found["active"], active)):
        places = len(said.partition(".")[2])
        cut = math.floor(count / 1e9 * 10**places) / 10**places
        assert f"{count / 1e9:.{places}f}" == said or f"{cut:.{places}f}" == said, count


def test_quantised_weights_are_said_and_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "v3.json").write_text(json.dumps(CARDS["DeepSeek-V3"][0]))
    config, name, notes = config_of(tmp_path / "v3.json")
    assert name == "v3" and "fp8" in notes[0]
    assert costs.cache_bytes(config, 2) == 61 * (512 + 64) * 2  # 70,272 bytes: a latent vector and a key a layer
    (tmp_path / "v3.json").write_text(json.dumps(CARDS["DeepSeek-V3"][0] | {"moe_layer_freq": 2}))
    with pytest.raises(BaseModelError, match="moe_layer_freq"):
        config_of(tmp_path / "v3.json")


@pytest.mark.parametrize("name", [*CASES, *ENCODERS])
def test_flops_are_what_a_profiler_counts(name: str, tmp_path: Path) -> None:
    (theirs(name) if name in CASES else test_encoders.theirs(name)).save_pretrained(tmp_path)
    config = read_config(read_json(tmp_path / "config.json"))
    model = load_model(tmp_path, config, "cpu", torch.float32)
    length = 32
    tokens = torch.zeros(1, length, dtype=torch.int64)
    # by plain products: the profiler does not know the CPU's fused kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.head(model(tokens, RowContext(tokens, both_ways=config.both_ways)))
    ours = costs.flops(config, length, cached=False) + length * costs.head_flops(config)
    for layer in config.layers:  # the profiler counts the whole square of scores, whatever is hidden
        attention = layer.attention
        width = attention.inner
        if attention.latent is not None:
            width = attention.heads * (attention.head_dim + attention.latent.value_dim) // 2
        seen = sum(min(i + 1, attention.window or length) for i in range(length))
        seen = 2 * seen - length if config.both_ways else seen
        ours += 4 * (length * length - seen) * width
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", [*CASES, *ENCODERS])
def test_bytes_are_those_of_what_the_engine_holds(name: str, tmp_path: Path) -> None:
    (theirs(name) if name in CASES else test_encoders.theirs(name)).save_pretrained(tmp_path)
    config = read_config(read_json(tmp_path / "config.json"))
    said = facts(config, "x")["memory"]
    for number, made in (
        ("float32", load_model(tmp_path, config, "cpu", torch.float32)),
        ("bfloat16", load_model(tmp_path, config, "cpu", torch.bfloat16)),
        ("int8", quantise(load_model(tmp_path, config, "cpu", torch.bfloat16))),
    ):
        held = [*made.parameters(), *made.buffers()]
        assert said[number] == pytest.approx(sum(one.nbytes for one in held), rel=0.01), number


def test_attention_of_a_full_context_is_each_tokens_share_of_it() -> None:
    """An encoder's tokens see all others once; a decoder's last one sees all before it."""
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 2}
    for kind in ("bert", "llama"):
        found = facts(read_config({"model_type": kind, "vocab_size": 320, "max_position_embeddings": 128} | shape), "x")
        assert found["attention_flops_per_token"] == 2 * 4 * 128 * 64
    t5 = read_config({"model_type": "t5"} | test_seq2seq.T5)
    assert facts(t5, "x")["encoder"]["attention_flops_per_token"] == 3 * 4 * 512 * 4 * 24


def test_windows_bound_the_cache() -> None:
    config = read_config(hf("mistral", 64, 96, 2, 4, 2, 320, sliding_window=16, max_position_embeddings=128))
    found = facts(config, "x")
    assert found["kv_bytes_at_context"] == 16 * found["kv_bytes_per_token"]


def test_two_are_compared_from_their_numbers() -> None:
    dense, mixture = (facts(read_config(CARDS[name][0]), name) for name in ("Mistral-7B-v0.1", "Mixtral-8x7B"))
    hold, run = compared(dense, mixture)
    assert hold == (
        "Mistral-7B-v0.1 is 6.45 times cheaper to hold "
        "(weights in bfloat16: Mistral-7B-v0.1 14.5 GB, Mixtral-8x7B 93.4 GB)."
    )
    assert run.startswith("Mistral-7B-v0.1 is 1.79 times cheaper to run (FLOPs a token: ")
    assert compared(dense, dense)[0].startswith("Mistral-7B-v0.1 and Mistral-7B-v0.1 cost the same to hold")


def test_pictures_say_what_is_there() -> None:
    text = "\n".join(picture(facts(read_config(CARDS["gemma-2-9b"][0]), "gemma-2-9b")))
    for part in (
        "9.24 billion",
        "norm → attention → norm",
        "the last 4,096 tokens",
        "scores capped at 50",
        "(21) of 42",
    ):
        assert part in text
    text = "\n".join(picture(facts(read_config(CARDS["Mixtral-8x7B"][0]), "Mixtral")))
    assert "8 experts of 14,336, 2 for each token" in text and "12.9 billion active" in text
