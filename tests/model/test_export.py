"""A finished base opens everywhere at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from pando.cli.export import Form, command
from pando.engine.load import load
from pando.errors import BaseModelError, PandoError
from pando.interface import GenerateRequest
from pando.model.base import open_base
from pando.model.card import Card
from pando.model.checkpoint import read_json
from pando.model.context import RowContext
from pando.model.export import licence_of, write_base, write_hf
from pando.model.transformer import Transformer
from tests.model import tiny
from tests.train import corpus

CARD = Card(
    name="tiny | base",
    licence="apache-2.0",
    summary="What it is.",
    data=[{"source": "plain", "licence": "CC0-1.0", "tokens": 12_345, "share": 0.25}],
    training={"parameters": 1_200_000, "objectives": "causal"},
    costs={"hours": 0.123456, "FLOPs": 1.5e15},
    results={"bits per byte": 1.875},
)


def model() -> Transformer:
    return tiny.model(tiny.config(family="qwen3", vocab_size=400))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = corpus.write_texts(tmp_path / "shards", ["the cat"] * 20)
    write_base(tmp_path / "base", model(), shards, CARD)
    return tmp_path / "base"


def test_written_base_opens_in_the_engine_and_in_transformers(folder: Path, home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        ours = model()
        assert (ours.head(ours(tokens, RowContext(tokens))) - theirs(tokens).logits).abs().max() < 1e-4
    base = open_base(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the cat sat <|im_end|>"
    ids = base.tokenizer.encode(text)
    assert tokenizer(text)["input_ids"] == ids
    assert ids == [0, *base.tokenizer.encode(text, add_special=False)]  # read as in training, after the end of another
    assert base.tokenizer.bos_id == 0
    chat = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == base.tokenizer.render_chat(chat)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 2]
    assert base.tokenizer.eos_ids == {0, 2}
    engine = load(folder)
    prompt = base.tokenizer.encode("the cat")
    (found,) = engine.generate([GenerateRequest(prompt=prompt, max_tokens=8, ignore_eos=True)])
    engine.close()
    begun = torch.tensor([prompt])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(begun)}
    wanted = theirs.generate(begun, **options)
    assert found.tokens == wanted[0, len(prompt) :].tolist()


def test_card_says_what_was_spent_on_what(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    for line in ("# tiny | base", "| plain | CC0-1.0 | 12,345 | 0.25 |", "| hours | 0.1235 |", "| FLOPs | 1.500e+15 |"):
        assert line in text
    assert Card("bare").text().count("##") == 0


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    shards = corpus.write_texts(tmp_path / "shards", ["the cat"] * 20)
    small = tiny.model(tiny.config(family="qwen3"))
    with pytest.raises(BaseModelError, match="not the tokenizer that the model was trained with"):
        write_base(tmp_path / "base", small, shards, CARD)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json"):
        write_base(tmp_path / "base", small, tmp_path, CARD)
    assert not (tmp_path / "base").exists()


def test_any_base_is_written_again_in_another_dtype(folder: Path, tmp_path: Path, home: Path) -> None:
    write_hf(open_base(folder), tmp_path / "half", "bfloat16")
    again = open_base(tmp_path / "half")
    assert again.config == open_base(folder).config
    weights = again.module().embed.weight
    assert torch.equal(weights, open_base(folder).module().embed.weight.bfloat16().float())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        assert (tmp_path / "half" / name).read_bytes() == (folder / name).read_bytes()
    assert read_json(tmp_path / "half" / "config.json")["eos_token_id"] == [0, 2]
    assert read_json(tmp_path / "half" / "config.json")["torch_dtype"] == "bfloat16"


def test_command_writes_both_forms_and_replaces_only_when_told(
    folder: Path, tmp_path: Path, home: Path, capsys
) -> None:
    command(str(folder), Form.gguf, tmp_path / "out" / "m.gguf", "float16", False)
    assert "base as gguf, float16, " in capsys.readouterr().out
    assert open_base(tmp_path / "out" / "m.gguf").identity.licence == "apache-2.0"
    command(str(tmp_path / "out" / "m.gguf"), Form.hf, tmp_path / "hf", "float32", False)
    again = open_base(tmp_path / "hf").tokenizer
    assert again.eos_ids == {0, 2} and again.encode("the cat")[0] == again.bos_id == 0
    with pytest.raises(PandoError, match="exists already"):
        command(str(folder), Form.hf, tmp_path / "hf", "float32", False)
    command(str(folder), Form.hf, tmp_path / "hf", "float32", True)
    with pytest.raises(PandoError, match="'int8' cannot be written with --to hf; use float32, float16, bfloat16"):
        command(str(folder), Form.hf, tmp_path / "other", "int8", False)


def test_a_sentence_encoder_stays_one(tmp_path: Path, home: Path) -> None:
    from transformers import AutoConfig, AutoModel

    from tests.model.test_encoders import ENCODERS

    kind, values = ENCODERS["bert"]
    AutoModel.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(tmp_path / "base")
    tiny.write_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "1_Pooling").mkdir()
    for name, data in {
        "modules.json": [{"type": "sentence_transformers.models.Transformer"}, {"type": "a.Pooling"}],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True},
    }.items():
        (tmp_path / "base" / name).write_text(json.dumps(data))
    base = open_base(tmp_path / "base")
    assert base.embedding.pooling == "first" and base.embedding.query == "query: "
    for _ in range(2):
        command(str(base.folder), Form.hf, tmp_path / "out", "float32", True)
        assert open_base(tmp_path / "out").embedding == base.embedding


def test_licence_comes_from_the_card(tmp_path: Path) -> None:
    source = open_base(tiny.write_base(tmp_path / "base", tiny.config()))
    assert licence_of(source) is None
    (source.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nlicense: no\n")
    assert licence_of(source) == "apache-2.0"
