"""Encoder-decoders beside transformers: logits, gradients, files both ways, the engine's caches, adapters, losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pando.engine.engine import Engine
from pando.engine.quantise import quantise
from pando.errors import BaseModelError, ContextLengthError, RequestError
from pando.interface import FeatureRequest, GenerateRequest, ScoreRequest
from pando.model import costs
from pando.model.base import open_base
from pando.model.checkpoint import load_model, read_json, save_model
from pando.model.context import PackedContext
from pando.model.families import read_config
from pando.model.lora import LoraConfig, all_linear
from pando.model.peft import load_peft, save_peft
from pando.model.transformer import Transformer
from pando.train.batch import collate_rows
from pando.train.example import IGNORE, Example, parted
from pando.train.lora import training_copy
from pando.train.loss import batch_loss
from pando.train.packing import Piece
from pando.train.supervised import SupervisedExample, collate, supervised_loss
from tests.model import tiny
from tests.model.tiny import Recorder

T5 = {
    "vocab_size": 320, "d_model": 64, "d_kv": 24, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_max_distance": 20, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 320, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 128,
    "init_std": 0.2, "forced_eos_token_id": None,
}  # fmt: skip
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5 1.0": ("t5", T5),
    "t5 1.1": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", BART),
    "bart with a scaled embedding": ("bart", BART | {"scale_embedding": True, "activation_function": "relu"}),
}
READ, WRITTEN = 40, 33


def theirs(name: str, folder: Path) -> Any:
    """A tiny model of transformers with random weights, norms and biases included, as it opens from its folder."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    kind, values = PAIRS[name]
    torch.manual_seed(0)
    made = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **values)).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    made.save_pretrained(folder)
    if values.get("tie_word_embeddings") is False:  # transformers makes such a model from files only
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn(320, 64) * 0.2
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tiny.write_tokenizer(folder)
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Transformer, Path]:
    """The same model, transformers' and ours, and its folder."""
    folder = tmp_path_factory.mktemp("base")
    reference = theirs(request.param, folder)
    shape = read_config(read_json(folder / "config.json"))
    return reference, load_model(folder, shape, "cpu", torch.float32), folder


def tokens(rows: int = 2, length: int = READ, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Transformer, read: torch.Tensor, written: torch.Tensor, adapters: Any = None) -> torch.Tensor:
    """Of rows of inputs [B, S] and answers [B, T]: [B, T, vocab]."""
    behind = PackedContext([read.shape[1]] * len(read), both_ways=True, adapters=adapters)
    ctx = PackedContext([written.shape[1]] * len(written), adapters=adapters, source=(read.flatten(), behind))
    return model.head(model(written.flatten(), ctx)).unflatten(0, written.shape)


def test_logits_and_gradients_are_those_of_transformers(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, ours, _ = pair
    read, written = tokens(), tokens(length=WRITTEN, seed=2)
    reference.zero_grad()
    expected = reference(input_ids=read, decoder_input_ids=written).logits
    ours.requires_grad_(True)
    found = logits(ours, read, written)
    tiny.near(record_property, "logits", found, expected, 1e-4)
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = {key: parameter.grad for key, parameter in reference.named_parameters()}
    tiny.check_gradients(record_property, ours, wanted)


def test_heads_that_transformers_5_calls_tied_are_told_by_their_scale() -> None:
    said = {"model_type": "t5", "tie_word_embeddings": True} | T5
    assert read_config(said).tied and read_config(said).head_scale == 64**-0.5
    untied = read_config(said | {"scale_decoder_outputs": False})
    assert not untied.tied and untied.head_scale == 1


@pytest.mark.parametrize(
    ("kind", "switch", "named"),
    [
        ("t5", {"relative_attention_num_buckets": 2}, "2 buckets"),
        ("t5", {"relative_attention_max_distance": 4}, "distances up to 4"),
        ("bart", {"init_std": "small"}, "init_std"),
    ],
)
def test_what_cannot_be_is_named(kind: str, switch: dict[str, Any], named: str) -> None:
    with pytest.raises(BaseModelError, match=named):
        read_config({"model_type": kind} | {"t5": T5, "bart": BART}[kind] | switch)


def test_saved_again_it_opens_in_transformers_and_here(
    pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    reference, ours, _ = pair
    save_model(ours, tmp_path, {"eos_token_id": 2})
    assert read_config(read_json(tmp_path / "config.json")) == ours.config
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    read, written = tokens(), tokens(length=WRITTEN, seed=2)
    with torch.no_grad():
        same = reference(input_ids=read, decoder_input_ids=written).logits
        tiny.near(record_property, "saved", again(input_ids=read, decoder_input_ids=written).logits, same, 1e-5)
    assert ours.config.shapes() == {name: tuple(p.shape) for name, p in ours.named_parameters()}
    assert ours.config.parameters == sum(p.numel() for p in reference.parameters())


def test_engine_continues_and_scores_as_transformers(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    """Inputs of different lengths in one batch, the same one twice; branches that share a beginning."""
    reference, _, folder = pair
    base = open_base(folder)
    start = base.config.start_token
    with Engine(base, base.module(), torch.device("cpu"), "float32", 128) as engine:
        inputs = [tokens(1, READ - 11 * i)[0].tolist() for i in range(3)]
        wanted = []
        for one in inputs:
            made = reference.generate(
                torch.tensor([one]), max_new_tokens=32, do_sample=False, eos_token_id=None, decoder_start_token_id=start
            )
            wanted.append(made[0, 1:].tolist())
        asked = [GenerateRequest(prompt=one, max_tokens=32, ignore_eos=True) for one in (*inputs, inputs[0])]
        found = engine.generate(asked)
        assert [one.tokens for one in found] == [*wanted, wanted[0]]
        record_property("greedy", f"{sum(map(len, wanted))} of {sum(map(len, wanted))}")
        assert [one.usage.prompt_tokens for one in found] == [*map(len, inputs), len(inputs[0])]
        assert found[0].usage.cached_tokens == 0 and found[3].usage.cached_tokens == len(inputs[0])
        branches = [wanted[0][:6], [*wanted[0][:3], 5, 7], [9]]
        (scores,) = engine.score([ScoreRequest(context=inputs[0], continuations=branches)])
        assert scores.greedy[0] and scores.usage.cached_tokens == len(inputs[0])  # the encoder reads it once
        for branch, score in zip(branches, scores.logprobs, strict=True):
            with torch.no_grad():
                rows = reference(
                    input_ids=torch.tensor([inputs[0]]), decoder_input_ids=torch.tensor([[start, *branch[:-1]]])
                ).logits.log_softmax(-1)[0]
            assert score == pytest.approx(float(rows.gather(1, torch.tensor(branch)[:, None]).sum()), abs=1e-3)
        (vector,) = engine.features([FeatureRequest(text=inputs[0])])
        with torch.no_grad():
            states = reference.get_encoder()(torch.tensor([inputs[0]])).last_hidden_state[0]
        assert np.abs(vector.vectors[0] - states.mean(0).numpy()).max() < 1e-4
        pool = engine._cache.pools[None]
        assert pool.promised == 0 and pool.available == pool.size
        with pytest.raises(RequestError, match="does not predict"):
            engine.generate([GenerateRequest(prompt=inputs[0], prompt_logprobs=0)])
        with pytest.raises(ContextLengthError):
            engine.generate([GenerateRequest(prompt=[5] * (base.config.stacks[0].context_length + 1))])


def test_more_inputs_than_the_cache_holds_take_turns(pair: tuple[Any, Transformer, Path]) -> None:
    _, _, folder = pair
    base = open_base(folder)
    with Engine(base, base.module(), torch.device("cpu"), "float32", 64) as engine:
        most = base.config.stacks[0].context_length
        asked = [
            GenerateRequest(prompt=tokens(1, most - i, seed=i)[0].tolist(), max_tokens=3, ignore_eos=True)
            for i in range(6)
        ]
        together = [one.tokens for one in engine.generate(asked)]
        assert together == [engine.generate([one])[0].tokens for one in asked]


def test_peft_opens_adapters(pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    _, ours, folder = pair
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for site, projection in ours.projections().items():
        shapes = (3, projection.in_features), (projection.out_features, 3)
        weights[site] = tuple(torch.randn(shape, generator=generator) * 0.1 for shape in shapes)
    assert any(".cross." in site for site in weights) and any(site.startswith("encoder.") for site in weights)
    save_peft(tmp_path, ours, LoraConfig(3, 5, all_linear(ours)), weights, "tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    adapter = load_peft(tmp_path, ours, torch.device("cpu"), torch.float32)
    base = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    changed = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    read, written = tokens(), tokens(length=WRITTEN, seed=2)
    with torch.no_grad():
        found = logits(ours, read, written, adapter)
        wanted = changed(input_ids=read, decoder_input_ids=written).logits
        tiny.near(record_property, "adapters", found, wanted, 1e-4)
        assert (found - logits(ours, read, written)).abs().max() > 1e-2
    opened = open_base(folder)
    with Engine(opened, opened.module(), torch.device("cpu"), "float32", 128) as engine:
        asked = {"prompt": read[0].tolist(), "max_tokens": 8, "ignore_eos": True}
        plain, adapted = engine.generate([GenerateRequest(**asked), GenerateRequest(**asked, skin=str(tmp_path))])
        wanted = changed.generate(
            input_ids=read[:1], max_new_tokens=8, do_sample=False, eos_token_id=None,
            decoder_start_token_id=opened.config.start_token,
        )  # fmt: skip
        assert adapted.tokens == wanted[0, 1:].tolist()
        assert (
            adapted.usage.cached_tokens == 0 and plain.tokens == engine.generate([GenerateRequest(**asked)])[0].tokens
        )


def test_copies_in_other_numbers_run(pair: tuple[Any, Transformer, Path]) -> None:
    """Mixed as LoRA trains it, bfloat16 throughout, and int8 as the engine holds it."""
    _, ours, folder = pair
    read, written = tokens(), tokens(length=WRITTEN, seed=2)
    with torch.no_grad():
        exact = logits(ours, read, written)
        half = load_model(folder, ours.config, "cpu", torch.bfloat16)
        small = quantise(load_model(folder, ours.config, "cpu", torch.float32))
        for copy in (training_copy(ours, torch.bfloat16), half, small):
            rough = logits(copy, read, written).float()
            assert (rough - exact).abs().median() < 0.15 * exact.abs().median()
        assert torch.equal(logits(ours, read, written), exact)  # it is a copy that was changed


def test_flops_are_those_that_a_profiler_counts(pair: tuple[Any, Transformer, Path]) -> None:
    _, ours, _ = pair
    read, written = tokens(1), tokens(1, WRITTEN, seed=2)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        logits(ours, read, written)
    config = ours.config
    found = costs.flops(config, WRITTEN, source=READ) + costs.source_flops(config, READ)
    found += WRITTEN * costs.head_flops(config)
    # the profiler counts the whole square of scores, whatever is hidden
    square = sum(4 * (WRITTEN**2 - WRITTEN * (WRITTEN + 1) // 2) * layer.attention.inner for layer in config.layers)
    assert counted.get_total_flops() == pytest.approx(found + square, rel=0.01)


def test_losses_of_packed_documents_are_those_of_each_alone(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, ours, _ = pair
    start = ours.config.start_token
    examples, total = [], 0.0
    for i in range(3):
        read, written = tokens(1, READ - 9 * i, seed=i)[0], tokens(1, 12 + i, seed=9 + i)[0]
        whole = torch.cat((read, written[:-1])).numpy().astype(np.int32)
        targets = np.full(len(whole), IGNORE, np.int32)
        targets[len(read) - 1 :] = written.numpy()
        examples.append(parted(Example(whole, targets), start, 128))
        assert examples[-1].prefix == len(read) and examples[-1].tokens[len(read)] == start
        with torch.no_grad():
            rows = reference(
                input_ids=read[None], decoder_input_ids=torch.cat((torch.tensor([start]), written[:-1]))[None]
            ).logits.log_softmax(-1)[0]
        total -= float(rows.gather(1, written[:, None]).sum())
    pieces = [Piece(i, (i, 0), one, 0, len(one.tokens)) for i, one in enumerate(examples)]
    for rows_, length in (([pieces], 160), ([[piece] for piece in pieces], 64)):
        found = batch_loss(ours, collate_rows(rows_, length, ("span",), 0), chunk=2)
        assert float(found.total) == pytest.approx(total, rel=1e-4)
    record_property("packed", tiny.short(abs(float(found.total) / total - 1)))
    pairs = [
        SupervisedExample(tuple(e.tokens[: e.prefix].tolist()), tuple(e.targets[e.prefix :].tolist())) for e in examples
    ]
    with torch.no_grad():
        loss, weight = supervised_loss(ours, collate(pairs, ours.config))
    assert float(loss) == pytest.approx(total, rel=1e-4) and weight == 12 + 13 + 14


@pytest.mark.parametrize(
    ("name", "switch", "named"),
    [
        ("t5 1.0", {"feed_forward_proj": "gated-swish"}, "feed_forward_proj"),
        ("t5 1.0", {"is_decoder": True}, "is_decoder"),
        ("t5 1.0", {"decoder_start_token_id": "first"}, "decoder_start_token_id"),
        ("bart", {"normalize_before": True}, "normalize_before"),
        ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm"),
    ],
)
def test_what_is_not_covered_is_named(name: str, switch: dict[str, Any], named: str) -> None:
    kind, values = PAIRS[name]
    with pytest.raises(BaseModelError, match=named):
        read_config({"model_type": kind} | values | switch)


def test_copies_that_differ_and_biases_that_are_not_zero_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs("bart", tmp_path)
    shape = read_config(read_json(tmp_path / "config.json"))
    good = load_file(tmp_path / "model.safetensors")
    for key, tensor in {
        "model.decoder.embed_tokens.weight": good["model.shared.weight"] + 1,
        "final_logits_bias": torch.ones(1, 320),
    }.items():
        save_file(good | {key: tensor}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(BaseModelError, match=key):
            load_model(tmp_path, shape, "cpu", torch.float32)
    copy = {"model.encoder.embed_tokens.weight": good["model.shared.weight"].clone()}
    save_file(good | copy, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(tmp_path, shape, "cpu", torch.float32)


def test_sentencepiece_tokenizers_write_grammars_and_stream(tmp_path: Path) -> None:
    """As T5's: words begin with their space, and not every character can be spelled. One request that asks for such a
    character fails; the others of its batch do not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    theirs("t5 1.0", tmp_path)
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    letters = " ".join("abcdefghijklmnopqrstuvwxyz0123456789-")
    made.train_from_iterator([*tiny.TEXT * 9, "positive or negative", letters] * 3, trainer)
    made.add_special_tokens(["<extra_id_0>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tiny.write_tokenizer(tmp_path, made, eos_token="</s>", pad_token="<pad>", bos_token=None)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    base = open_base(tmp_path)
    assert base.tokenizer.drops_space and base.tokenizer.sentinel == "<extra_id_0>"
    with Engine(base, base.module(), torch.device("cpu"), "float32", 512) as engine:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        asked = [
            GenerateRequest(prompt="The fox", choices=["positive", "negative"], max_tokens=20),
            GenerateRequest(prompt="The fox", regex="[0-9]{3}-[a-c]+", max_tokens=12),
            GenerateRequest(prompt="The fox", schema=schema, max_tokens=12),  # no token has a brace
            GenerateRequest(prompt="The quick brown", max_tokens=12, temperature=1.0, seed=1, n=2),
        ]
        chosen, matched, braces, free = (engine.submit(one) for one in asked)
        assert chosen.result()[0].text in ("positive", "negative")
        assert matched.result()[0].text[:4].strip("0123456789") == "-"
        with pytest.raises(RequestError, match="schema asks for a text that this base's tokenizer cannot spell"):
            braces.result()
        samples = free.result()
        streamed = "".join(chunk.text for chunk in engine.submit(asked[3]).stream() if chunk.index == 0)
        assert streamed == samples[0].text
        assert engine.load["running"] == 0 and engine.load["blocks_used"] == 0
        (scores,) = engine.score([ScoreRequest(context="The fox", continuations=["positive", "negative"])])
        assert min(scores.tokens) >= 1
