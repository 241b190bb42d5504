"""Encoders beside transformers: logits for masked tokens, gradients, files both ways, vectors through the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pando.engine.engine import Engine
from pando.errors import BaseModelError, ContextLengthError, RequestError
from pando.interface import FeatureRequest, GenerateRequest, ScoreRequest
from pando.model.base import open_base
from pando.model.checkpoint import load_model, read_json, save_model
from pando.model.context import RowContext
from pando.model.families import read_config
from pando.model.lora import LoraConfig, all_linear
from pando.model.peft import load_peft, save_peft
from pando.model.sentence import Embedding, read_embedding
from pando.model.transformer import Transformer
from pando.train.batch import collate_rows
from pando.train.example import IGNORE, Example
from pando.train.loss import batch_loss
from pando.train.packing import Piece
from tests.model import tiny
from tests.model.tiny import Recorder

COMMON = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
ROBERTA = COMMON | {"pad_token_id": 1, "max_position_embeddings": 130, "type_vocab_size": 1}
MODERN = COMMON | {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", COMMON),
    "bert untied": ("bert", COMMON | {"tie_word_embeddings": False}),
    "roberta": ("roberta", ROBERTA),
    "xlm-roberta": ("xlm-roberta", ROBERTA),
    "roberta with another activation": ("roberta", ROBERTA | {"hidden_act": "relu"}),
    "modernbert": ("modernbert", MODERN),
    "modernbert with biases": (
        "modernbert", MODERN | {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True,
                                "classifier_activation": "silu"},
    ),
}  # fmt: skip
LENGTH = 40


def theirs(name: str, head: bool = True) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    kind, values = ENCODERS[name]
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if head else AutoModel
    made = auto.from_config(AutoConfig.for_model(kind, **values)).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def written(reference: Any, folder: Path) -> Path:
    reference.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=ENCODERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Transformer, Path]:
    reference = theirs(request.param)
    folder = written(reference, tmp_path_factory.mktemp("base"))
    shape = read_config(read_json(folder / "config.json"))
    return reference, load_model(folder, shape, "cpu", torch.float32), folder


def tokens(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(1))


def both(ids: torch.Tensor) -> RowContext:
    return RowContext(ids, both_ways=True)


def test_logits_and_gradients_are_those_of_transformers(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, ours, _ = pair
    ids = tokens()
    expected = reference(ids).logits
    ours.requires_grad_(True)
    found = ours.head(ours(ids, both(ids)))
    tiny.near(record_property, "logits", found, expected, 1e-4)
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = {key: parameter.grad for key, parameter in reference.named_parameters(remove_duplicate=False)}
    tiny.check_gradients(record_property, ours, wanted)


def test_saved_again_it_opens_in_transformers_and_here(
    pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder
) -> None:
    from transformers import AutoModelForMaskedLM

    reference, ours, _ = pair
    save_model(ours, tmp_path, {})
    assert read_config(read_json(tmp_path / "config.json")) == ours.config
    again = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = tokens()
    with torch.no_grad():
        tiny.near(record_property, "saved", again(ids).logits, reference(ids).logits, 1e-5)
    assert ours.config.shapes() == {name: tuple(p.shape) for name, p in ours.named_parameters()}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_norms_with_their_old_names_are_read(name: str, tmp_path: Path) -> None:
    """bert-base-uncased and others that were converted from TensorFlow."""
    from safetensors.torch import load_file, save_file

    folder = written(theirs(name), tmp_path)
    shape = read_config(read_json(folder / "config.json"))
    wanted = load_model(folder, shape, "cpu", torch.float32)
    file = folder / "model.safetensors"
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in load_file(file).items()
    }
    assert any(key.endswith("gamma") for key in old)
    save_file(old, file, {"format": "pt"})
    found = load_model(folder, shape, "cpu", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))


def test_what_googles_files_say_is_read(tmp_path: Path) -> None:
    """bert-base-multilingual and others: the head of pretraining, and switches of a pooler that nobody uses."""
    from transformers import AutoConfig, BertForPreTraining

    torch.manual_seed(0)
    reference = BertForPreTraining(AutoConfig.for_model("bert", **COMMON)).eval()
    reference.save_pretrained(tmp_path)
    pooler = {"pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3}
    pooler |= {"directionality": "bidi", "pooler_size_per_head": 128, "pooler_type": "first_token_transform"}
    shape = read_config(read_json(tmp_path / "config.json") | pooler)
    ours, ids = load_model(tmp_path, shape, "cpu", torch.float32), tokens()
    with torch.no_grad():
        assert (ours.head(ours(ids, both(ids))) - reference(ids).prediction_logits).abs().max() < 1e-4
    with pytest.raises(BaseModelError, match="architectures is 'BertModel'"):
        read_config({"model_type": "bert", "architectures": "BertModel"} | COMMON)


def test_losses_of_packed_documents_are_those_of_each_alone(
    pair: tuple[Any, Transformer, Path], record_property: Recorder
) -> None:
    reference, ours, _ = pair
    examples = []
    for i in range(3):
        ids = tokens(3)[i, : LENGTH - 9 * i].numpy().astype(np.int32)
        targets = np.full(len(ids), IGNORE, np.int32)
        targets[[2, 5, 11]] = ids[[3, 9, 1]]
        examples.append(Example(ids, targets, prefix=len(ids)))
    with torch.no_grad():
        total = sum(
            float(F.cross_entropy(reference(torch.tensor(one.tokens[None]).long()).logits[0],
                                  torch.tensor(one.targets).long(), reduction="sum"))
            for one in examples
        )  # fmt: skip
    pieces = [Piece(i, (i, 0), one, 0, len(one.tokens)) for i, one in enumerate(examples)]
    ours.requires_grad_(True)
    packed_loss = batch_loss(ours, collate_rows([pieces], 128, ("masked",), 0), chunk=2)
    assert float(packed_loss.total) == pytest.approx(total, rel=1e-4)
    record_property("packed", tiny.short(abs(float(packed_loss.total) / total - 1)))
    packed_loss.total.backward()
    gradient = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    plain = sum(
        F.cross_entropy(ours.head(ours(ids, both(ids)))[0], torch.tensor(one.targets).long(), reduction="sum")
        for one in examples
        for ids in [torch.tensor(one.tokens[None]).long()]
    )
    plain.backward()
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - gradient[name]).abs().max() < 1e-3, name
    ours.requires_grad_(False)
    ours.zero_grad()


def test_engine_makes_the_vectors_of_transformers(
    pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder
) -> None:
    """A bare model, as sentence encoders are kept; texts of different lengths in one batch."""
    from transformers import AutoModel

    _, _, folder = pair
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    base = open_base(written(body, tmp_path))
    assert not base.config.predicts
    with Engine(base, base.module(), torch.device("cpu"), "float32", 128) as engine:
        gaps, rows = [], [tokens(1, n)[0].tolist() for n in (40, 7, 23)]
        found = engine.features([FeatureRequest(text=row, layers=[0, 2, -1], pooling="both") for row in rows])
        for row, one in zip(rows, found, strict=True):
            with torch.no_grad():
                states = body(torch.tensor([row]), output_hidden_states=True).hidden_states
            for vector, layer in zip(one.vectors, (0, 2, -1), strict=True):
                wanted = torch.cat((states[layer][0].mean(0), states[layer][0, -1]))
                if layer == -1:  # after the last norm, where transformers' list may stop before it
                    last = body(torch.tensor([row])).last_hidden_state[0].detach()
                    wanted = torch.cat((last.mean(0), last[-1]))
                gaps.append(np.abs(vector - wanted.numpy()).max())
                assert gaps[-1] < 1e-4
        record_property("vectors", tiny.short(max(gaps)))
        assert not engine.capabilities.generate and not engine.capabilities.score
        with pytest.raises(RequestError, match="an encoder"):
            engine.generate([GenerateRequest(prompt=rows[0])])
        with pytest.raises(RequestError, match="no head that predicts"):
            engine.score([ScoreRequest(context=rows[0], continuations=[[1]])])
        (again,) = engine.features([FeatureRequest(text=rows[0], layers=[0, 2, -1], pooling="both")])
        assert again.usage.cached_tokens == 0 and np.array_equal(again.vectors, found[0].vectors)


def test_peft_opens_adapters(pair: tuple[Any, Transformer, Path], tmp_path: Path, record_property: Recorder) -> None:
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM

    _, ours, folder = pair
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for site, projection in ours.projections().items():
        shapes = (3, projection.in_features), (projection.out_features, 3)
        weights[site] = tuple(torch.randn(shape, generator=generator) * 0.1 for shape in shapes)
    save_peft(tmp_path, ours, LoraConfig(3, 5, all_linear(ours)), weights, "tiny")
    adapter = load_peft(tmp_path, ours, torch.device("cpu"), torch.float32)
    base = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    changed = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    ids = tokens()
    with torch.no_grad():
        found = ours.head(ours(ids, RowContext(ids, adapters=adapter, both_ways=True)))
        tiny.near(record_property, "adapters", found, changed(ids).logits, 1e-4)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A tiny sentence encoder with the files of sentence-transformers; texts begin with a token of the tokenizer's."""
    from tokenizers.processors import TemplateProcessing

    folder = written(theirs("bert", head=False), tmp_path / "encoder")
    made = tiny.tokenizer()
    made.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tiny.write_tokenizer(folder, made)
    kinds = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    more = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(more))
    return folder


def test_a_sentence_encoder_embeds_as_its_files_say(sentences: Path) -> None:
    base = open_base(sentences)
    assert base.embedding == Embedding("first", 16, "query: ", "query: ", "passage: ", known=True)
    with Engine(base, base.module(), torch.device("cpu"), "float32", 128) as engine:
        (vector,) = engine.embed(["the fox"])
        (plain,) = engine.features([FeatureRequest(text="query: the fox", pooling="first")])
        assert np.allclose(vector, plain.vectors[0] / np.linalg.norm(plain.vectors[0]), atol=1e-6)
        (found,) = engine.features([FeatureRequest(text="the fox", pooling="own", side="document")])
        (plain,) = engine.features([FeatureRequest(text="passage: the fox", pooling="first")])
        assert np.array_equal(found.vectors, plain.vectors)
        with pytest.raises(ContextLengthError, match="16"):
            engine.embed(["the fox " * 20])
        ids = [0, *tokens(1, 19)[0].tolist()]
        long, kept = (
            engine.features([FeatureRequest(text=row, pooling="own", truncate="left")])[0]
            for row in (ids, ids[:1] + ids[-15:])
        )
        assert long.usage.truncated_tokens == 4
        assert np.array_equal(long.vectors, kept.vectors)  # its opening, whose state is the vector, stays
        head, kept = (
            engine.features([FeatureRequest(text=row, pooling="mean", max_tokens=9, truncate="right")])[0]
            for row in (ids, ids[:9])
        )
        assert (head.usage.truncated_tokens, kept.usage.truncated_tokens) == (11, 0)
        assert np.array_equal(head.vectors, kept.vectors)
        with pytest.raises(ContextLengthError, match="9"):
            engine.features([FeatureRequest(text=ids, max_tokens=9)])
    before = base.identity.hash
    (sentences / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert open_base(sentences).identity.hash != before  # what bears on vectors is part of the base


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "Dense"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "include_prompt": False}, "include_prompt false"),
        ("sentence_bert_config.json", [], "JSON object"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts is"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "prompts is"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name is 'query'"),
    ],
)
def test_what_is_not_covered_is_named(sentences: Path, file: str, content: Any, named: str) -> None:
    (sentences / file).write_text(json.dumps(content))
    with pytest.raises(BaseModelError, match=named):
        read_embedding(sentences)
    for switch in ({"is_decoder": True}, {"position_embedding_type": "relative_key"}):
        with pytest.raises(BaseModelError, match=next(iter(switch))):
            read_config({"model_type": "bert"} | COMMON | switch)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_a_cross_encoder_scores_pairs_as_transformers(name: str, tmp_path: Path) -> None:
    """Pairs of different lengths in one batch, each token of the kind of its text; files both ways; an adapter too."""
    from peft import PeftModel
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForSequenceClassification

    kind, values = ENCODERS[name]
    torch.manual_seed(0)
    values = values | {"num_labels": 1}
    reference = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **values)).float().eval()
    reference.save_pretrained(tmp_path / "base")
    made = tiny.tokenizer()
    kinds = (0, 1) if kind == "bert" else (0, 0)
    made.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        pair=f"<|endoftext|> $A <|im_end|> $B:{kinds[1]} <|im_end|>:{kinds[1]}",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    tiny.write_tokenizer(tmp_path / "base", made)
    base = open_base(tmp_path / "base")
    assert base.config.judges and not base.config.predicts
    query, texts = "the quick fox", ["a lazy dog jumps over", "fox", "brown café: return x, return x"]

    def logits(model: Any) -> list[float]:
        found = []
        for text in texts:
            pair = made.encode(query, text)
            with torch.no_grad():
                more = {"token_type_ids": torch.tensor([pair.type_ids])} if kind == "bert" else {}
                found.append(float(model(input_ids=torch.tensor([pair.ids]), **more).logits[0, 0]))
        return found

    model = base.module()
    weights = {
        site: tuple(torch.randn(shape, generator=torch.Generator().manual_seed(i)) * 0.1 for shape in shapes)
        for i, (site, one) in enumerate(model.projections().items())
        for shapes in [((3, one.in_features), (one.out_features, 3))]
    }
    (tmp_path / "adapter").mkdir()
    save_peft(tmp_path / "adapter", model, LoraConfig(3, 5, all_linear(model)), weights, "tiny")
    with Engine(base, model, torch.device("cpu"), "float32", 128) as engine:
        assert engine.capabilities.pairs and not engine.capabilities.score
        (found,) = engine.score([ScoreRequest(context=query, continuations=texts)])
        wanted = logits(reference)
        assert found.logprobs == pytest.approx([float(F.logsigmoid(torch.tensor(one))) for one in wanted], abs=1e-5)
        assert found.greedy == [one > 0 for one in wanted]
        adapter = str(tmp_path / "adapter")
        (adapted,) = engine.score([ScoreRequest(context=query, continuations=texts, skin=adapter)])
        changed = logits(PeftModel.from_pretrained(reference, adapter).eval())
        assert adapted.logprobs == pytest.approx([float(F.logsigmoid(torch.tensor(x))) for x in changed], abs=1e-4)
        with pytest.raises(RequestError, match="must be texts"):
            engine.score([ScoreRequest(context=[5, 6], continuations=texts)])
        with pytest.raises(ContextLengthError):
            engine.score([ScoreRequest(context=query, continuations=["fox " * 200])])
        (cut,) = engine.score([ScoreRequest(context=query, continuations=["fox " * 200], truncate="left")])
        assert cut.usage.truncated_tokens > 0 and cut.usage.prompt_tokens == base.config.context_length
        mixed = "fox " * 200 + "dog " * 200
        left, right, dogs, foxes = (
            engine.score([ScoreRequest(context=query, continuations=[text], truncate=side)])[0].logprobs
            for text, side in ((mixed, "left"), (mixed, "right"), ("dog " * 200, "left"), ("fox " * 200, "right"))
        )
        assert left == dogs and right == foxes != left
        with pytest.raises(RequestError, match="truncate must be one of"):
            engine.score([ScoreRequest(context=query, continuations=texts, truncate="middle")])  # type: ignore[arg-type]
    save_model(model, tmp_path, {})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert logits(again) == pytest.approx(logits(reference), abs=1e-5)
    assert read_config(read_json(tmp_path / "config.json")) == base.config
