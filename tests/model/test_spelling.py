from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pando.model.spelling import Spelling


def byte_level() -> Tokenizer:
    vocab = {character: place for place, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<|end|>", special=True)])
    return raw


def pieces() -> Tokenizer:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
    raw = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return raw


@pytest.mark.parametrize("raw", [byte_level(), pieces()], ids=["byte level", "pieces"])
@given(text=st.text())
def test_the_bytes_of_the_tokens_are_the_text(raw: Tokenizer, text: str) -> None:
    if "▁" in text:
        return  # the pieces' own sign for a space
    spell = Spelling(raw)
    assert b"".join(spell(raw.encode(text).ids)).decode() == text


def test_special_and_unknown_tokens() -> None:
    assert Spelling(byte_level())([256, 9999]) == [b"<|end|>", b""]


@pytest.mark.real
def test_the_real_tokenizer(real_model: object) -> None:
    text = "Ein Satz, naïve 東京 🤦🏽\n\tx  <|im_end|>"
    raw = real_model.base.tokenizer.raw  # type: ignore[attr-defined]
    ids = raw.encode(text).ids
    assert b"".join(real_model.token_bytes(ids)).decode() == text  # type: ignore[attr-defined]
