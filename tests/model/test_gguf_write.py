"""What is written as GGUF is read again by us and by transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pando.errors import BaseModelError, PandoError
from pando.model.base import BaseModel, open_base
from pando.model.config import ModelConfig, RopeScaling
from pando.model.context import RowContext
from pando.model.gguf_tokenizer import _LLAMA3
from pando.model.gguf_write import DTYPES, write_gguf
from tests.model import tiny

SHAPES = {
    "llama": tiny.config(),
    "llama, untied": tiny.config(tied=False, kv_heads=1),
    "llama, yarn": tiny.config(scaling=RopeScaling("yarn", 4.0, 32)),
    "llama, linear": tiny.config(scaling=RopeScaling("linear", 2.0)),
    "qwen3": tiny.config(family="qwen3"),
    "qwen3, untied, wide heads": tiny.config(family="qwen3", tied=False, head_dim=32),
    "qwen2": tiny.config(family="qwen2"),
}
HARD = "<|im_start|>user\n 1234567890  two\n\n<|im_end|> ÿ\u2028\u0000\U0001f469\u200d\U0001f467 I'Ll don't\t\tx"


def base(folder: Path, shape: ModelConfig = SHAPES["qwen3"]) -> BaseModel:
    tiny.write_base(folder, shape)
    tiny.write_tokenizer(folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    return open_base(folder)


def windowed(shape: ModelConfig) -> ModelConfig:
    """The same, seeing 8 tokens back."""
    attention = replace(shape.layers[0].attention, window=8)
    return replace(shape, layers=(replace(shape.layers[0], attention=attention),) * len(shape.layers))


def logits(model, length: int = 40) -> torch.Tensor:
    tokens = torch.arange(length)[None]
    with torch.no_grad():
        return model.head(model(tokens, RowContext(tokens)))


@pytest.mark.parametrize("name", SHAPES)
def test_written_file_is_the_same_base_again(name: str, tmp_path: Path, home: Path) -> None:
    source = base(tmp_path / "base", SHAPES[name])
    write_gguf(source, tmp_path / "m.gguf", licence="mit")
    again = open_base(tmp_path / "m.gguf")
    assert again.config == replace(source.config, initializer_range=0.02)  # all that the file does not hold
    assert torch.equal(logits(again.module()), logits(source.module()))
    assert again.identity.licence == "mit"
    for text in (*tiny.TEXT, HARD, "", " "):
        assert again.tokenizer.encode(text) == source.tokenizer.encode(text)
    assert again.tokenizer.eos_ids == source.tokenizer.eos_ids and again.tokenizer.bos_id == source.tokenizer.bos_id
    assert again.tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_logits(family: str, tied: bool, tmp_path: Path, home: Path) -> None:
    from transformers import AutoModelForCausalLM

    # its reader takes every qwen3 to have heads of 128
    source = base(tmp_path / "base", tiny.config(family=family, tied=tied, head_dim=128 if family == "qwen3" else 16))
    write_gguf(source, tmp_path / "m.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    assert (theirs(torch.arange(40)[None]).logits.detach() - logits(source.module())).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_near_the_base(dtype: str, tmp_path: Path, home: Path) -> None:
    source = base(tmp_path / "base")
    write_gguf(source, tmp_path / "m.gguf", dtype)
    wanted = logits(source.module())
    assert (logits(open_base(tmp_path / "m.gguf").module()) - wanted).abs().mean() < 0.03 * wanted.abs().mean()
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == DTYPES[dtype] and kinds["blk.0.attn_q_norm.weight"] == "F32"


def bpe(pre, normalizer=None, specials=("<|endoftext|>", "<|im_end|>")) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    tokens = [AddedToken(one, special=True) for one in specials]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"special_tokens": tokens, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator([*tiny.TEXT] * 3, trainers.BpeTrainer(vocab_size=310, **options))
    return made


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), bytes_])


TOKENIZERS = {
    "dbrx": bpe(split(_LLAMA3)),  # what `pando tokenizer train` makes
    "qwen2": bpe(split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), normalizers.NFC()),
    "gpt-2": bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": tiny.tokenizer(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_keep_their_ids_and_the_model_its_rows(name: str, tmp_path: Path, home: Path) -> None:
    tiny.write_base(tmp_path / "base", SHAPES["qwen3"])
    TOKENIZERS[name].save(str(tmp_path / "base" / "tokenizer.json"))
    settings = '{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}'
    (tmp_path / "base" / "tokenizer_config.json").write_text(settings)
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    source = open_base(tmp_path / "base")
    write_gguf(source, tmp_path / "m.gguf")
    again = open_base(tmp_path / "m.gguf")
    for text in (*tiny.TEXT, HARD):
        assert again.tokenizer.encode(text) == TOKENIZERS[name].encode(text).ids
    assert again.tokenizer.eos_ids == source.tokenizer.eos_ids == {0, 2}
    assert again.config.vocab_size == 320  # rows without a token stay
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == name


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (tiny.config(bias=True), "biases"),
        (tiny.config(scaling=RopeScaling("llama3", 8.0, 32)), "llama3"),
        (tiny.config(scaling=RopeScaling("yarn", 8.0, 32, attention_factor=1.1)), "yarn with settings of its own"),
        (windowed(tiny.config(family="qwen3")), "a sliding window"),
    ],
)
def test_what_has_no_form_is_named(shape: ModelConfig, named: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=f"{named}.* cannot be written as GGUF"):
        write_gguf(base(tmp_path / "base", shape), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_other_tokenizers_are_named(tmp_path: Path) -> None:
    source = base(tmp_path / "base")
    bpe(split(r"\s+")).save(str(source.folder / "tokenizer.json"))
    with pytest.raises(BaseModelError, match="no name for the way this tokenizer cuts text"):
        write_gguf(source, tmp_path / "m.gguf")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(source.folder / "tokenizer.json"))
    with pytest.raises(BaseModelError, match="only byte-level BPE"):
        write_gguf(source, tmp_path / "m.gguf")


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = base(tmp_path / "base")
    (tmp_path / "m.gguf").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(PandoError, match="the disk is full"):
        write_gguf(source, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "m.gguf"]
