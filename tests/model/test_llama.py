from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pando.errors import BaseModelError
from pando.model.base import open_base
from pando.model.checkpoint import load_model, read_json, save_model
from pando.model.config import RopeScaling
from pando.model.context import RowContext
from pando.model.families import family, read_config
from tests.model import tiny

SHAPES = {
    "grouped, tied": tiny.config(),
    "one key-value head, untied": tiny.config(kv_heads=1, tied=False),
    "as many key-value heads, wide heads": tiny.config(kv_heads=4, head_dim=32),
    "biases": tiny.config(bias=True, tied=False),
    "linear": tiny.config(scaling=RopeScaling("linear", 4.0)),
    "llama3": tiny.config(scaling=RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0)),
    "yarn": tiny.config(scaling=RopeScaling("yarn", 4.0, 32)),
    "yarn, own factor, not truncated": tiny.config(
        scaling=RopeScaling("yarn", 4.0, 32, attention_factor=0.8, truncate=False, beta_fast=16.0)
    ),
}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
LLAMA |= {"num_hidden_layers": 2, "vocab_size": 320}


def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model(tokens, RowContext(tokens)))


@pytest.mark.parametrize("name", SHAPES)
def test_saved_model_gives_the_logits_of_transformers_and_loads_again(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours = tiny.model(SHAPES[name])
    save_model(ours, tmp_path, {"bos_token_id": 1, "eos_token_id": 2})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 320, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits.detach()
    assert (logits(ours, tokens) - expected).abs().max() < 1e-4
    again = load_model(tmp_path, SHAPES[name], "cpu", torch.float32)
    assert torch.equal(logits(again, tokens), logits(ours, tokens))
    assert read_config(read_json(tmp_path / "config.json")) == SHAPES[name]


@pytest.mark.parametrize("name", ["grouped, tied", "biases", "llama3", "yarn"])
def test_model_saved_by_transformers_loads_with_the_same_logits_and_gradients(name: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    hf = family("llama").hf_config(SHAPES[name])
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**hf)).float()
    theirs.save_pretrained(tmp_path)
    assert "rope_parameters" in read_json(tmp_path / "config.json")  # the form of transformers 5
    shape = read_config(read_json(tmp_path / "config.json"))
    assert shape == SHAPES[name]
    ours = load_model(tmp_path, shape, "cpu", torch.float32).requires_grad_(True)
    tokens = torch.randint(0, 320, (2, 33), generator=torch.Generator().manual_seed(2))
    expected = theirs(tokens).logits
    found = ours.head(ours(tokens, RowContext(tokens)))
    assert (found - expected).abs().max() < 1e-4
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    parameters = dict(ours.named_parameters())
    for mine, key in family("llama").keys(shape):
        assert (parameters[mine].grad - wanted[key]).abs().max() < 1e-4, key


@pytest.mark.real
def test_real_base_gives_the_logits_and_greedy_tokens_of_transformers() -> None:
    """Three prompts here; verify/check_parity.py has twenty."""
    from transformers import AutoModelForCausalLM

    base = open_base()
    ours = base.module()
    theirs = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    for prompt in ("Paris is", "def fibonacci(n):\n", "Q: What is 17 + 25? A:"):
        begun = torch.tensor([base.tokenizer.encode(prompt)])
        wanted = theirs.generate(begun, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
        found = logits(ours, wanted)
        assert (found - theirs(wanted).logits.detach()).abs().max() < 1e-3
        # each token is the likeliest after those before it, so greedy decoding would have taken it too
        assert torch.equal(found[0, begun.shape[1] - 1 : -1].argmax(-1), wanted[0, begun.shape[1] :])


@given(
    heads=st.sampled_from([(4, 1), (4, 2), (8, 8)]),
    head_dim=st.sampled_from([8, 16, 64]),
    tied=st.booleans(),
    bias=st.booleans(),
    scaling=st.none()
    | st.builds(RopeScaling, st.just("linear"), st.floats(1, 16))
    | st.builds(
        RopeScaling,
        st.just("llama3"),
        st.floats(1, 32),
        st.integers(1, 8192),
        low_freq_factor=st.floats(0.5, 2),
        high_freq_factor=st.floats(3, 8),
    )
    | st.builds(
        RopeScaling,
        st.just("yarn"),
        st.floats(1, 32),
        st.integers(1, 8192),
        beta_fast=st.floats(8, 64),
        beta_slow=st.floats(0.5, 4),
        attention_factor=st.none() | st.floats(0.5, 2),
        truncate=st.booleans(),
    ),
)
def test_config_goes_out_and_in_unchanged(heads, head_dim, tied, bias, scaling) -> None:
    shape = tiny.config(*heads, head_dim=head_dim, tied=tied, bias=bias, scaling=scaling)
    written = json.loads(json.dumps(family("llama").hf_config(shape)))
    assert read_config(written) == shape


def test_keys_name_every_parameter_once() -> None:
    for shape in SHAPES.values():
        ours, theirs = zip(*family("llama").keys(shape), strict=True)
        assert sorted(ours) == sorted(name for name, _ in tiny.model(shape).named_parameters())
        assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize(
    ("switch", "named"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 3}}, "surprise"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "key-value heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_size": None}, "hidden_size"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_unsupported_switches_are_refused_by_name(switch, named: str) -> None:
    with pytest.raises(BaseModelError, match=named):
        read_config(LLAMA | switch)


def test_switches_that_are_off_or_harmless_are_let_through() -> None:
    noise = {"sliding_window": None, "use_cache": True, "unsloth_version": "2024.9", "_name_or_path": "x", "moe": False}
    assert read_config(LLAMA | noise) == read_config(LLAMA)


def test_multipliers_of_yarn_become_its_attention_factor() -> None:
    import math

    scaling = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64}
    shape = read_config(LLAMA | {"rope_scaling": scaling | {"mscale": 1.0, "mscale_all_dim": 0.5}})
    expected = (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)
    assert shape.layers[0].attention.rope.scaling.attention_factor == pytest.approx(expected)


def published(d_model: int, hidden: int, layers: int, heads: int, kv_heads: int, vocab: int, **more) -> dict:
    """A config.json as these models' pages show it, with what they carry besides."""
    shape = {"hidden_size": d_model, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu"}
    noise = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "float16"}
    noise |= {"transformers_version": "4.42.3", "use_cache": True, "pretraining_tp": 1, "_name_or_path": "x"}
    return {"model_type": "llama", **shape, **noise, **more}


LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 |= {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("hf", "parameters"),
    [
        (published(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True, rope_interleaved=False), 134_515_008),
        (published(4096, 11008, 32, 32, 32, 32000, rope_scaling=None), 6_738_415_616),
        (published(4096, 14336, 32, 32, 8, 128256, rope_theta=5e5, rope_scaling=LLAMA31), 8_030_261_248),
        (published(2048, 5504, 24, 16, 16, 32256, rope_scaling={"type": "linear", "factor": 4.0}), 1_346_471_936),
    ],
    ids=["SmolLM2-135M", "Llama-2-7B", "Llama-3.1-8B", "DeepSeek-Coder-1.3B"],
)
def test_published_configs_are_read(hf: dict, parameters: int) -> None:
    assert read_config(hf).parameters == parameters
