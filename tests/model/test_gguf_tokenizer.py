from __future__ import annotations

import itertools
import json
import struct
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
    "deepseek-llm": ["It", "'", "s", "Ġ", *"2024", ",", "Ċ", "ĠI", "'", "LL", "Ġpay", "Ġ", *"12345", "Ġ", "Ġx"],
    "deepseek-coder": ["It", "'", "s", "Ġ", *"2024", ",", "Ċ", "ĠI", "'", "LL", "Ġpay", "Ġ", *"12345", "Ġ", "Ġx"],
    "deepseek-v3": ["It", "'s", "Ġ", "202", "4", ",Ċ", "ĠI", "'LL", "Ġpay", "Ġ", "123", "45", "Ġ", "Ġx"],
    "qwen2": ["It", "'s", "Ġ", *"2024", ",Ċ", "ĠI", "'LL", "Ġpay", "Ġ", *"12345", "Ġ", "Ġx"],
}


_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as they are
_BYTES = {chr(i): i for i in _PRINTED} | {
    chr(256 + n): i for n, i in enumerate(i for i in range(256) if i not in _PRINTED)
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


def unigram(**changes: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece unigram model over a, b and the space."""
    scored = {
        "<pad>": 0.0,
        "</s>": 0.0,
        "<unk>": 0.0,
        "▁": -3.5,
        "a": -2.0,
        "b": -2.5,
        "▁a": -3.0,
        "ab": -3.2,
        "aba": -7,
    }
    types = [3, 3, 2, *[1] * 6]
    values = {"model": "t5", "tokens": list(scored), "scores": list(map(float, scored.values())), "token_type": types}
    values |= {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def made(metadata: dict[str, Any]) -> RawTokenizer:
    return RawTokenizer.from_str(json.dumps(read_tokenizer(metadata)["tokenizer.json"]))


@pytest.mark.parametrize("pre", WORDS)
def test_text_is_cut_into_words_as_the_kind_says(pre: str) -> None:
    words = made(fields(pre=pre, bos_token_id=1)).pre_tokenizer.pre_tokenize_str(LINE)
    assert [word for word, _ in words] == WORDS[pre]


def test_deepseek_tells_scripts_apart() -> None:
    line = "naïve Αθήνα,中文かな 한국 привет"
    cuts = {
        pre: [word for word, _ in made(fields(pre=pre)).pre_tokenizer.pre_tokenize_str(line)]
        for pre in ("deepseek-llm", "deepseek-coder", "deepseek-v3")
    }
    plain = {pre: [bytes(_BYTES[c] for c in word).decode() for word in words] for pre, words in cuts.items()}
    # its marks run from ":" to "~", letters and all, which cuts ASCII out of words with accents
    assert plain["deepseek-llm"] == ["na", "ï", "ve", " Αθήνα", ",", "中文かな", " ", "한국", " привет"]
    assert plain["deepseek-coder"] == ["naïve", " Αθήνα", ",", "中文かな", " ", "한국", " привет"]
    assert plain["deepseek-v3"] == ["naïve", " Αθήνα", ",", "中文かな", " 한국", " привет"]


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


def likeliest(text: str, metadata: dict[str, Any]) -> float:
    """The score of the best way to cut a text."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    best = [0.0]
    for end in range(1, len(text) + 1):
        best.append(max(best[s] + scores[text[s:end]] for s in range(end) if text[s:end] in scores))
    return best[-1]


@given(st.text("ab ", min_size=1, max_size=30))
def test_texts_are_cut_as_is_likeliest(text: str) -> None:
    metadata = unigram()
    tokens = made(metadata).encode(text).tokens
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    words = text.split()
    assert tokens[-1] == "</s>" and "".join(tokens[:-1]) == "".join("▁" + word for word in words)
    assert sum(scores[one] for one in tokens) == pytest.approx(sum(likeliest("▁" + word, metadata) for word in words))
    assert made(metadata).decode(made(metadata).encode(text).ids) == " ".join(words)


def test_characters_are_replaced_as_the_files_map_says() -> None:
    units = [0] * 256  # a double array: from its root by a's code to a unit that has a leaf, 0x80 further, of value 0
    units[ord("a")] = ord("a") | 1 << 8 | 0x80 << 10
    charsmap = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"b\0"
    signed = [value - 256 if value > 127 else value for value in charsmap]  # as some converters write it
    for values in (list(charsmap), signed):
        assert made(unigram(precompiled_charsmap=values)).encode("aab").tokens == ["▁", "b", "b", "b", "</s>"]


def test_words_and_their_parts_are_berts() -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "able", "▁able", "▁!"]
    values = {"model": "bert", "tokens": words, "token_type": [3, 3, 3, 3, 1, 1, 1, 1], "cls_token_id": 2}
    values |= {"seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    tokenizer = made(metadata)
    assert tokenizer.encode("Unable áble! x").tokens == ["[CLS]", "un", "##able", "able", "!", "[UNK]", "[SEP]"]
    pair = tokenizer.encode("able", "!")
    assert pair.tokens == ["[CLS]", "able", "[SEP]", "!", "[SEP]"] and pair.type_ids == [0, 0, 0, 1, 1]
    assert read_tokenizer(metadata)["tokenizer_config.json"]["cls_token"] == "[CLS]"


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
        (pieces(model="rwkv"), "tokenizer.ggml.model 'rwkv'"),
        (unigram(token_type=[3] * 9), "or none of these is unknown"),
        (fields(merges=["a b c"]), "'a b c' does not join"),
        (fields(bos_token_id=-1), "bos_token_id -1"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(BaseModelError, match=named):
        read_tokenizer(values)
