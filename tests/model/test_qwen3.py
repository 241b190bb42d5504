"""The qwen3 family against transformers, and through the seams that every family goes through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pando.engine.engine import Engine
from pando.engine.quantise import quantise
from pando.errors import BaseModelError
from pando.interface import GenerateRequest, ScoreRequest
from pando.model.checkpoint import load_model, read_json, save_model
from pando.model.config import InitConfig, RopeScaling
from pando.model.context import RowContext
from pando.model.families import family, read_config
from pando.model.lora import LoraConfig, all_linear
from pando.model.peft import load_peft, save_peft
from pando.model.transformer import Transformer
from pando.train.lora import LoraSettings, LoraTrainer, training_copy
from pando.train.supervised import SupervisedExample
from tests.model import tiny
from tests.tiny import tiny_base

SHAPES = {
    "grouped, tied": tiny.config(family="qwen3"),
    "one key-value head, untied": tiny.config(family="qwen3", kv_heads=1, tied=False),
    "wide heads": tiny.config(family="qwen3", kv_heads=4, head_dim=32),
    "biases": tiny.config(family="qwen3", bias=True),
    "yarn": tiny.config(family="qwen3", scaling=RopeScaling("yarn", 4.0, 32)),
}
QWEN = {"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
QWEN |= {"num_hidden_layers": 2, "vocab_size": 320}


def logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model(tokens, RowContext(tokens)))


@pytest.mark.parametrize("name", SHAPES)
def test_saved_model_gives_the_logits_and_greedy_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    ours = tiny.model(SHAPES[name])
    save_model(ours, tmp_path, {"bos_token_id": 1, "eos_token_id": 2})
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(1))
    assert (logits(ours, tokens) - theirs(tokens).logits.detach()).abs().max() < 1e-4
    wanted = theirs.generate(tokens[:1, :8], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(logits(ours, wanted)[0, 7:-1].argmax(-1), wanted[0, 8:])
    again = load_model(tmp_path, SHAPES[name], "cpu", torch.float32)
    assert torch.equal(logits(again, tokens), logits(ours, tokens))
    assert read_config(read_json(tmp_path / "config.json")) == SHAPES[name]


@pytest.mark.parametrize("name", ["grouped, tied", "biases", "yarn"])
def test_model_saved_by_transformers_loads_with_the_same_logits_and_gradients(name: str, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(Qwen3Config(**family("qwen3").hf_config(SHAPES[name]))).float()
    theirs.save_pretrained(tmp_path)
    shape = read_config(read_json(tmp_path / "config.json"))
    assert shape == SHAPES[name]
    ours = load_model(tmp_path, shape, "cpu", torch.float32).requires_grad_(True)
    tokens = torch.randint(0, 320, (2, 33), generator=torch.Generator().manual_seed(2))
    expected, found = theirs(tokens).logits, ours.head(ours(tokens, RowContext(tokens)))
    assert (found - expected).abs().max() < 1e-4
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    parameters = dict(ours.named_parameters())
    for mine, key in family("qwen3").keys(shape):
        assert (parameters[mine].grad - wanted[key]).abs().max() < 1e-4, key


@pytest.mark.parametrize(
    ("switch", "named"),
    [
        (
            {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2, "sliding_window": None},
            "sliding_window",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_unsupported_switches_are_refused_by_name(switch: dict, named: str) -> None:
    with pytest.raises(BaseModelError, match=named):
        read_config(QWEN | switch)


def test_published_config_is_read() -> None:
    """Qwen3-0.6B's config.json."""
    hf = QWEN | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0}
    hf |= {"bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024}
    hf |= {"initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960}
    hf |= {"max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8}
    hf |= {"rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None}
    hf |= {"tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0"}
    hf |= {"use_cache": True, "use_sliding_window": False, "vocab_size": 151936}
    assert read_config(hf).parameters == 596_049_920
    assert read_config(QWEN).layers[0].attention.head_dim == 128  # what the family takes where nothing is said


def test_config_counts_the_parameters_that_the_model_has() -> None:
    for shape in SHAPES.values():
        with torch.device("meta"):
            assert sum(p.numel() for p in Transformer(shape).parameters()) == shape.parameters


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    base = tiny_base(tmp_path_factory.mktemp("qwen3"), family="qwen3")
    made = Engine(base, base.module(), torch.device("cpu"), "float32", 4096)
    yield made
    made.close()


def test_engine_continues_as_transformers_does(engine: Engine) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(engine.base.folder, dtype=torch.float32).eval()
    prompt = engine.base.tokenizer.encode("the cat and a dog")
    begun = torch.tensor([prompt])
    wanted = theirs.generate(begun, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    (found,) = engine.generate([GenerateRequest(prompt=prompt, max_tokens=24, ignore_eos=True)])
    assert found.tokens == wanted[len(prompt) :].tolist()
    (score,) = engine.score([ScoreRequest(context=prompt, continuations=[found.tokens])])
    rows = theirs(wanted[None]).logits.detach().log_softmax(-1)[0, len(prompt) - 1 : -1]
    total = rows.gather(1, wanted[len(prompt) :, None]).sum()
    assert score.logprobs[0] == pytest.approx(float(total), abs=1e-3)


def test_int8_and_bfloat16_copies_run(engine: Engine) -> None:
    tokens = torch.arange(40)[None]
    model = engine.base.module()
    exact = logits(model, tokens)
    for changed in (quantise(engine.base.module()), training_copy(model, torch.bfloat16)):
        with torch.no_grad():
            rough = changed.head(changed(tokens, RowContext(tokens)))
        assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_lora_is_trained_saved_and_opened_by_peft(engine: Engine, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = engine.base.module()
    config = LoraConfig(4, 8, all_linear(model))
    examples = [SupervisedExample((5, 6, 7 + i), (9 + i, 2)) for i in range(8)]
    trainer = LoraTrainer(model, config, examples, LoraSettings(learning_rate=1e-2, steps=20, batch_size=8), seed=0)
    losses = list(trainer.train(20))
    assert losses[-1] < 0.7 * losses[0]
    save_peft(tmp_path, model, config, trainer.adapter.tensors(), "tiny")
    adapter = load_peft(tmp_path, model, torch.device("cpu"), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(engine.base.folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    tokens = torch.tensor([[5, 6, 9, 10, 2]])
    with torch.no_grad():
        ours = model.head(model(tokens, RowContext(tokens, adapters=adapter)))
        assert (ours - theirs(tokens).logits).abs().max() < 1e-3


def test_fresh_weights_for_pretraining_begin_even() -> None:
    """Blocks that begin as the identity, and logits of like size at any width."""
    spreads = []
    for width in (64, 256):
        made = Transformer(tiny.config(family="qwen3", d_model=width, head_dim=width // 4, init=InitConfig()))
        made.initialise(0)
        weights = {name: p.detach() for name, p in made.named_parameters()}
        assert not weights["layers.1.attention.o.weight"].any() and not weights["layers.0.mlp.down.weight"].any()
        assert float(weights["layers.0.mlp.up.weight"].std()) == pytest.approx(width**-0.5, rel=0.05)
        assert (weights["layers.0.attention.q_norm.weight"] == 1).all()
        spreads.append(float(logits(made, torch.arange(64)[None]).abs().median()) / width**0.5)
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)
    scaled = Transformer(
        tiny.config(init=InitConfig(matrices=0.02, outputs=0.5, embedding=1.0, head=0.001), tied=False)
    )
    scaled.initialise(0)
    found = {name: float(p.detach().std()) for name, p in scaled.named_parameters() if p.ndim == 2}
    assert found["layers.0.attention.q.weight"] == pytest.approx(0.02, rel=0.1)
    assert found["layers.0.attention.o.weight"] == pytest.approx(0.01, rel=0.1)
    assert found["embed.weight"] == pytest.approx(1.0, rel=0.1)
    assert found["unembed.weight"] == pytest.approx(0.001, rel=0.1)
