"""Every family beside transformers: logits, gradients, files both ways, the engine's cache, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pando.engine.engine import Engine
from pando.engine.quantise import quantise
from pando.errors import BaseModelError
from pando.interface import GenerateRequest, ScoreRequest
from pando.model.base import open_base
from pando.model.checkpoint import load_model, read_json, save_model, tensors_of
from pando.model.context import RowContext
from pando.model.families import _MODULES, family, read_config
from pando.model.layers import ExpertProjection
from pando.model.lora import LoraConfig, all_linear
from pando.model.peft import load_peft, save_peft
from pando.model.transformer import Transformer
from pando.train.batch import collate_rows
from pando.train.lora import training_copy
from pando.train.loss import batch_loss
from pando.train.objectives.supervised import answered
from pando.train.packing import Piece
from pando.train.supervised import SupervisedExample, collate, supervised_loss
from tests.model import tiny
from tests.model.tiny import Recorder

COMMON = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 320, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 128, "initializer_range": 0.2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
NEOX = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
GEMMA = COMMON | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "mistral": ("mistral", COMMON | {"sliding_window": 8}),
    "mistral without a window": ("mistral", COMMON | {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", COMMON),
    "qwen2 with windows": (
        "qwen2",
        COMMON | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", COMMON | {"head_dim": 32}),
    "smollm3": ("smollm3", COMMON),
    "smollm3 with windows": ("smollm3", COMMON | {"use_sliding_window": True, "sliding_window": 8}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma2 without caps": ("gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", GEMMA | {"sliding_window_pattern": 2}),
    "olmo2": ("olmo2", COMMON),
    "olmo3": ("olmo3", COMMON | {"sliding_window": 8}),
    "olmo3 stretched": (
        "olmo3",
        COMMON | {"sliding_window": 8, "rope_parameters": {"full_attention": YARN, "sliding_attention": None}},
    ),
    "phi3": ("phi3", COMMON | {"sliding_window": 8}),
    "phi3 turned in part": ("phi3", COMMON | {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 128}),
    "starcoder2": ("starcoder2", COMMON | {"sliding_window": 8}),
    "starcoder2 without biases": ("starcoder2", COMMON | {"use_bias": False}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox, one after the other": ("gpt_neox", NEOX | {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "gpt2": ("gpt2", GPT2),
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
DEEPSEEK = COMMON | {
    "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip
DEEP_YARN = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 0.707,
    "rope_theta": 10000.0,
}  # fmt: skip
CASES |= {
    "mixtral": ("mixtral", COMMON | {"num_local_experts": 4}),
    "olmoe": ("olmoe", COMMON | {"num_experts": 8, "num_experts_per_tok": 3}),
    "qwen2_moe": ("qwen2_moe", COMMON | MOE | {"shared_expert_intermediate_size": 40, "norm_topk_prob": True}),
    "qwen3_moe": ("qwen3_moe", COMMON | MOE | {"mlp_only_layers": [1], "norm_topk_prob": True}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5}),
    "deepseek_v2 lite": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None, "rope_parameters": DEEP_YARN}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | {"routed_scaling_factor": 2.0, "rms_norm_eps": 1e-2}),
    "deepseek_v3 stretched": ("deepseek_v3", DEEPSEEK | {"rope_parameters": DEEP_YARN, "rope_interleave": False}),
}
LENGTH = 40


def theirs(name: str) -> Any:
    """A tiny model of transformers with random weights, norms and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = CASES[name]
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **special, **values)).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Transformer, Path]:
    """The same model, transformers' and ours, and its folder."""
    folder = tmp_path_factory.mktemp("base")
    reference = theirs(request.param)
    reference.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    shape = read_config(read_json(folder / "config.json"))
    return reference, load_model(folder, shape, "cpu", torch.float32), folder


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 320, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def test_all_families_are_here() -> None:
    from tests.model.test_encoders import ENCODERS
    from tests.model.test_seq2seq import PAIRS

    assert {kind for cases in (CASES, ENCODERS, PAIRS) for kind, _ in cases.values()} == set(_MODULES)


def test_logits_and_gradients_are_those_of_transformers(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, ours, _ = pair
    ids = tokens()
    reference.zero_grad()
    expected = reference(ids).logits
    trained = ours.requires_grad_(True)
    found = trained.head(trained(ids, RowContext(ids)))
    tiny.near(record_property, "logits", found, expected, 1e-4)
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = {key: parameter.grad for key, parameter in reference.named_parameters()}
    wanted["embed_out.weight"] = reference.get_output_embeddings().weight.grad  # a file's name for what has another
    for key, gradient in list(wanted.items()):  # files have experts one by one
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            matrices = {"gate_proj w1": 0, "up_proj w3": 1} if "gate_up" in key else {"down_proj w2": 0}
            for called, half in matrices.items():
                size = gradient.shape[1] // len(matrices)
                for e, one in enumerate(gradient):
                    for name in called.split():
                        wanted[f"{key.rpartition('.')[0]}.{e}.{name}.weight"] = one[half * size :][:size]
    wanted |= {key.replace(".mlp.", ".block_sparse_moe."): one for key, one in wanted.items()}
    tiny.check_gradients(record_property, ours, wanted)


@pytest.mark.parametrize("kind", sorted(_MODULES))
def test_what_a_config_leaves_out_is_what_transformers_takes_or_named(kind: str) -> None:
    from transformers import AutoConfig

    usual = {"num_experts_per_tok": 6} if kind == "deepseek_v2" else {}  # has none that transformers could use
    whole = AutoConfig.for_model(kind, **usual).to_dict()
    wanted, required = read_config(whole), []
    for key in whole.keys() - {"model_type", "initializer_range", *usual}:
        try:
            assert read_config({name: value for name, value in whole.items() if name != key}) == wanted, key
        except BaseModelError as error:
            required.append(key)
            assert "config.json: " in str(error)
    assert len(required) < 10, required


def test_windows_that_are_not_given_are_those_of_transformers() -> None:
    shape = {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 2} | COMMON
    assert [layer.attention.window for layer in read_config(shape).layers] == [None, None, 4096, 4096]
    assert {layer.attention.window for layer in read_config(shape | {"sliding_window": None}).layers} == {None}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_of_transformers_say_the_same(pair: tuple[Any, Transformer, Path], side: str) -> None:
    """Nothing is padded here; rows padded there on either side give at their tokens what they give here alone."""
    reference, ours, _ = pair
    rows = [tokens()[0], tokens()[1, : LENGTH - 7]]
    ids, mask = torch.zeros(2, LENGTH, dtype=torch.long), torch.zeros(2, LENGTH, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(LENGTH - len(row), LENGTH) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    with torch.no_grad():
        theirs = reference(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        for i, row in enumerate(rows):
            found = ours.head(ours(row[None], RowContext(row[None])))[0]
            assert (found - theirs[i][mask[i].bool()]).abs().max() < 1e-4


def test_layers_that_only_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    """DeepSeek-V3's files have one more layer than the model, numbered like it."""
    from safetensors.torch import load_file, save_file

    reference = theirs("deepseek_v3")
    reference.save_pretrained(tmp_path)
    depth = reference.config.num_hidden_layers
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"model.layers.{depth}.enorm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    shape = read_config(read_json(tmp_path / "config.json"))
    assert len(load_model(tmp_path, shape, "cpu", torch.float32).layers) == depth
    save_file(tensors | {f"model.layers.{depth + 1}.enorm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=rf"unexpected key model\.layers\.{depth + 1}"):
        load_model(tmp_path, shape, "cpu", torch.float32)


def test_saved_again_it_opens_in_transformers_and_here(
    pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder
) -> None:
    from transformers import AutoModelForCausalLM

    reference, ours, _ = pair
    save_model(ours, tmp_path, {"bos_token_id": 1, "eos_token_id": 2})
    assert read_config(read_json(tmp_path / "config.json")) == ours.config
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = tokens()
    with torch.no_grad():
        tiny.near(record_property, "saved", again(ids).logits, reference(ids).logits, 1e-5)
        own = load_model(tmp_path, ours.config, "cpu", torch.float32)
        assert torch.equal(own.head(own(ids, RowContext(ids))), ours.head(ours(ids, RowContext(ids))))


def test_names_and_counts_are_those_of_the_module(pair: tuple[Any, Transformer, Path]) -> None:
    reference, ours, _ = pair
    assert ours.config.shapes() == {name: tuple(p.shape) for name, p in ours.named_parameters()}
    choices = sum(b.numel() for name, b in reference.named_buffers() if name.endswith("e_score_correction_bias"))
    assert ours.config.parameters == sum(p.numel() for p in reference.parameters()) + choices
    parts = list(tensors_of(family(ours.config.family), ours.config))
    assert sorted({name for part in parts for name in part.ours}) == sorted(ours.config.shapes())


def test_engine_continues_and_scores_as_transformers(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, _, folder = pair
    base = open_base(folder)
    engine = Engine(base, base.module(), torch.device("cpu"), "float32", 128)
    try:
        prompts = [tokens(1)[0, : LENGTH - 5 * i].tolist() for i in range(3)]
        wanted = [
            reference.generate(
                torch.tensor([prompt]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
        found = engine.generate([GenerateRequest(prompt=p, max_tokens=32, ignore_eos=True) for p in prompts])
        assert [one.tokens for one in found] == wanted
        record_property("greedy", f"{sum(map(len, wanted))} of {sum(map(len, wanted))}")
        branches = [wanted[0][:6], [*wanted[0][:3], 5, 7], [9]]
        (scores,) = engine.score([ScoreRequest(context=prompts[0], continuations=branches)])
        for branch, score in zip(branches, scores.logprobs, strict=True):
            ids = torch.tensor([prompts[0] + branch])
            with torch.no_grad():
                rows = reference(ids).logits.log_softmax(-1)[0, len(prompts[0]) - 1 : -1]
            assert score == pytest.approx(float(rows.gather(1, ids[0, len(prompts[0]) :, None]).sum()), abs=1e-3)
    finally:
        engine.close()


def test_losses_agree_packed_and_with_a_shared_prefix(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    """Documents of one row do not see each other, a prefix that rows share is seen by each, windows included."""
    reference, ours, _ = pair
    ids = tokens(3)
    head = tuple(ids[0, :20].tolist())
    examples = [
        SupervisedExample(head + tuple(ids[i, 20:28].tolist()), tuple(ids[i, 28 : 36 - i].tolist())) for i in range(3)
    ]
    total = 0.0
    for example in examples:
        whole = torch.tensor([[*example.prompt, *example.answer]])
        with torch.no_grad():
            rows = reference(whole).logits.log_softmax(-1)[0, len(example.prompt) - 1 : -1]
        total -= float(rows.gather(1, torch.tensor(example.answer)[:, None]).sum())
    with torch.no_grad():
        shared, _ = supervised_loss(ours, collate(examples, ours.config))
        pieces = [Piece(i, (i, 0), one, 0, len(one.tokens)) for i, one in enumerate(map(answered, examples))]
        packed = batch_loss(ours, collate_rows([pieces], 128, ("supervised",), 0))
    assert float(shared) == pytest.approx(total, rel=1e-4)
    assert float(packed.total) == pytest.approx(total, rel=1e-4)
    record_property("packed", tiny.short(abs(float(packed.total) / total - 1)))


def test_peft_opens_adapters(pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, ours, folder = pair
    config = LoraConfig(3, 5, all_linear(ours))
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for site, projection in ours.projections().items():
        stack = (projection.experts,) if isinstance(projection, ExpertProjection) else ()
        shapes = (*stack, 3, projection.in_features), (*stack, projection.out_features, 3)
        weights[site] = tuple(torch.randn(shape, generator=generator) * 0.1 for shape in shapes)
    save_peft(tmp_path, ours, config, weights, "tiny")
    adapter = load_peft(tmp_path, ours, torch.device("cpu"), torch.float32)
    changed = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(tmp_path)
    ).eval()
    ids = tokens()
    with torch.no_grad():
        found = ours.head(ours(ids, RowContext(ids, adapters=adapter)))
        tiny.near(record_property, "adapters", found, changed(ids).logits, 1e-4)
        assert (found - ours.head(ours(ids, RowContext(ids)))).abs().max() > 1e-2


def test_copies_in_other_numbers_run(pair: tuple[Any, Transformer, Path]) -> None:
    """Mixed as LoRA trains it, bfloat16 throughout, and int8 as the engine holds it."""
    _, ours, folder = pair
    ids = tokens()
    with torch.no_grad():
        exact = ours.head(ours(ids, RowContext(ids)))
        half = load_model(folder, ours.config, "cpu", torch.bfloat16)
        small = quantise(load_model(folder, ours.config, "cpu", torch.float32))
        for copy in (training_copy(ours, torch.bfloat16), half, small):
            rough = copy.head(copy(ids, RowContext(ids))).float()
            # experts that are nearly as good change places, so that single tokens may differ a lot
            assert (rough - exact).abs().median() < 0.15 * exact.abs().median()
        assert torch.equal(ours.head(ours(ids, RowContext(ids))), exact)  # it is a copy that was changed
        for copy in (half, small):  # balancing moves it by less than bfloat16 tells
            biases = {name: p for name, p in copy.named_parameters() if name.endswith("router.bias")}
            assert all(torch.equal(p, dict(ours.named_parameters())[name]) for name, p in biases.items())


@pytest.mark.parametrize(
    ("name", "switch", "named"),
    [
        (
            "deepseek_v3",
            {"first_k_dense_replace": 9},
            "first_k_dense_replace is 9; expected less than num_hidden_layers",
        ),
        ("deepseek_v3", {"n_group": 3}, "3 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "5 experts of a token"),
        ("deepseek_v3", {"n_group": 8, "topk_group": 8}, "8 experts in 8 groups"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 .num_experts_per_tok. of 4 experts"),
        ("qwen3", {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_theta 1 cannot"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"n_embd": "wide"}, "n_embd"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("olmo3", {"sliding_window": None, "layer_types": ["sliding_attention"] * 4}, "sliding_window"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "type"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type"),
    ],
)
def test_what_is_not_covered_is_named(name: str, switch: dict[str, Any], named: str) -> None:
    kind, values = CASES[name]
    with pytest.raises(BaseModelError, match=named):
        read_config({"model_type": kind} | values | switch)


STRETCHED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("llama", {"rope_scaling": STRETCHED}, "rope_scaling and rope_parameters are both there and differ"),
        ("deepseek_v3", {"rope_scaling": STRETCHED}, "rope_scaling and rope_parameters are both there and differ"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ("qwen3_moe", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supp"),
        ("gpt_neox", {"rope_parameters": None, "rope_theta": 500.0}, "rope_theta = 500.0 is not supported"),
        ("gpt_neox", {"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
        ("modernbert", {"rope_parameters": None, "rope_scaling": STRETCHED}, "rope_scaling = .* is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 0.5}, "attn_logit_softcapping = 0.5 is not supported"),
        ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu' is not supported"),
        ("llama", {"hidden_size": 10**400}, "hidden_size is 1000000.*expected a whole number"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000000.*expected a number above 0"),
    ],
)
def test_what_transformers_reads_otherwise_is_refused(kind: str, more: dict[str, Any], said: str) -> None:
    from transformers import AutoConfig

    hf = AutoConfig.for_model(kind).to_dict()
    assert read_config(hf).family
    with pytest.raises(BaseModelError, match=said):
        read_config(hf | more)


def test_two_names_of_the_same_positions_are_one(tmp_path: Path) -> None:
    from transformers import AutoConfig

    hf = AutoConfig.for_model("llama").to_dict()
    assert read_config(hf | {"rope_scaling": hf["rope_parameters"]}) == read_config(hf)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1' + "0" * 5000 + "}"], ids=["deep", "long"])
def test_a_hostile_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")
