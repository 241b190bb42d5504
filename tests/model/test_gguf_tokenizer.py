from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from pando.errors import BaseModelError
from pando.model.gguf_tokenizer import read_tokenizer
from tests.model import tiny

# What each way of cutting text into words makes of one line; "Ġ" is a space.
LINE = "It's 2024,\n I'LL pay 12345  x"
WORDS = {
    "gpt-2": ["It", "'s", "Ġ2024", ",", "Ċ", "ĠI", "'", "LL", "Ġpay", "Ġ12345", "Ġ", "Ġx"],
    "smollm": [*("It", "'s", "Ġ", "2", "0", "2", "4", ",", "Ċ", "ĠI", "'", "LL", "Ġpay", "Ġ"), *"12345", "Ġ", "Ġx"],
    "llama-bpe": ["It", "'s", "Ġ", "202", "4", ",Ċ", "ĠI", "'LL", "Ġpay", "Ġ", "123", "45", "Ġ", "Ġx"],
    "qwen2": ["It", "'s", "Ġ", *"2024", ",Ċ", "ĠI", "'LL", "Ġpay", "Ġ", *"12345", "Ġ", "Ġx"],
}


def fields(**changes: Any) -> dict[str, Any]:
    """Metadata of a byte-level BPE."""
    content = json.loads(tiny.tokenizer().to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    values = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": [" ".join(m) for m in content["merges"]]}
    values["token_type"] = [3 if t in tiny.SPECIALS else 1 for t in tokens]
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def pieces(**changes: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece BPE over a, b, c and the space, with bytes to fall back to."""
    scored = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0} | {f"<0x{i:02X}>": 0.0 for i in range(256)}
    types = [2, 3, 3] + [6] * 256
    learnt = ["ab", "▁a", "bc", "▁ab", "abc", "ca", "▁▁", "cab", "▁abc", "bca", "aa", "▁▁▁▁", "aaaa"]
    for rank, token in enumerate([*learnt, "▁", "a", "b", "c"]):
        scored[token] = -float(rank)
        types.append(1)
    values = {"model": "llama", "tokens": list(scored), "scores": list(scored.values()), "token_type": types}
    values |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def made(metadata: dict[str, Any]) -> RawTokenizer:
    return RawTokenizer.from_str(json.dumps(read_tokenizer(metadata)["tokenizer.json"]))


@pytest.mark.parametrize("pre", WORDS)
def test_text_is_cut_into_words_as_the_kind_says(pre: str) -> None:
    words = made(fields(pre=pre, bos_token_id=1)).pre_tokenizer.pre_tokenize_str(LINE)
    assert [word for word, _ in words] == WORDS[pre]


def test_qwen_composes_characters_first() -> None:
    decomposed, composed = "e\u0301", "\u00e9"
    assert made(fields(pre="qwen2")).encode(decomposed).ids == made(fields(pre="qwen2")).encode(composed).ids
    assert made(fields()).encode(decomposed).ids != made(fields()).encode(composed).ids


def test_llama3_takes_words_that_are_tokens_without_merging_and_adds_bos() -> None:
    values = fields(pre="llama-bpe", bos_token_id=1)
    values["tokenizer.ggml.tokens"].append("zzz")
    values["tokenizer.ggml.token_type"].append(1)
    assert made(values).encode("zzz").ids == [1, len(values["tokenizer.ggml.tokens"]) - 1]
    assert made(values | {"tokenizer.ggml.add_bos_token": False}).encode("zzz").ids[0] != 1


def merged(text: str, metadata: dict[str, Any]) -> list[str]:
    """SentencePiece's rule, plainly: join the neighbours whose joint token scores best, the leftmost first."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [a + b for a, b in itertools.pairwise(symbols)]
        pairs = [(scores[token], -i) for i, token in enumerate(joined) if token in scores]
        if not pairs:
            return symbols
        at = -max(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]


@given(st.text("abc ", min_size=1, max_size=30))
def test_pieces_are_merged_as_sentencepiece_does(text: str) -> None:
    metadata = pieces()
    tokenizer = made(metadata)
    encoding = tokenizer.encode(text)
    assert encoding.tokens == ["<s>", *merged(text, metadata)]
    assert tokenizer.decode(encoding.ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_characters_outside_the_vocabulary_fall_back_to_bytes(text: str) -> None:
    text = text.replace("▁", "")  # SentencePiece cannot tell it from a space
    assert made(pieces()).decode(made(pieces()).encode(text).ids) == text


def test_space_prefix_is_the_files_choice() -> None:
    assert made(pieces(add_space_prefix=False)).encode("ab").tokens == ["<s>", "ab"]
    assert made(pieces(add_space_prefix=False)).decode([259]) == "ab"


def test_end_tokens_are_those_the_file_names() -> None:
    settings = read_tokenizer(fields(eos_token_id=2, eot_token_id=0, padding_token_id=2))["generation_config.json"]
    assert settings == {"pad_token_id": 2, "eos_token_id": [0, 2]}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (pieces(scores=[0.0]), "tokenizer.ggml.scores does not fit"),
        (pieces(token_type=[1]), "does not fit tokenizer.ggml.token_type"),
        (pieces(model="t5"), "tokenizer.ggml.model 't5'"),
        (fields(merges=["a b c"]), "'a b c' does not join"),
        (fields(bos_token_id=-1), "bos_token_id -1"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(BaseModelError, match=named):
        read_tokenizer(values)
