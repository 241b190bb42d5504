from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pando.corpus import bpe, tokens
from pando.errors import DataError
from tests.corpus.texts import document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tokenizer")
    bpe.save(bpe.train((document(seed) for seed in range(50)), 600), where)
    return where


def test_special_tokens_come_first_and_transformers_reads_it(folder: Path) -> None:
    made = tokens.load_tokenizer(folder / "tokenizer.json")
    assert [made.token_to_id(name) for name in bpe.SPECIALS] == list(range(len(bpe.SPECIALS)))
    from transformers import AutoTokenizer

    same = AutoTokenizer.from_pretrained(str(folder))
    text = document(3) + " naïve\n\tx"
    assert same(text)["input_ids"] == made.encode(text).ids and same.decode(made.encode(text).ids) == text
    assert same.eos_token == same.pad_token == bpe.END and same.eos_token_id == 0
    chat = same.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_training_is_the_same_each_time() -> None:
    texts = [document(seed) for seed in range(30)]
    assert bpe.train(iter(texts), 450).to_str() == bpe.train(iter(texts), 450).to_str()
    with pytest.raises(DataError, match="has no room"):
        bpe.train(texts, 200)


def test_ids_are_those_of_tokenizers(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    made = tokens.load_tokenizer(folder / "tokenizer.json")
    made.encode_special_tokens = True
    texts = [*tokens.AWKWARD, *(document(seed) for seed in range(100, 200)), "say <|endoftext|> and <|mask|>"]
    found, _ = tokens.encoded(texts, path)
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == made.encode(text, add_special_tokens=False).ids


def test_the_fast_library_is_used_where_it_is_there(folder: Path) -> None:
    pytest.importorskip("gigatoken")
    assert tokens.encoded([document(1)], str(folder / "tokenizer.json"))[1]
    found, fast = tokens.encoded(["only <|mask|>"], str(folder / "tokenizer.json"))  # nothing is left to prove it with
    assert fast and len(found) == 1 and tokens.encoded([], str(folder / "tokenizer.json")) == ([], False)


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_library_that_errs_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def fast(texts: Any) -> list[Any]:
        if fault == "raises":
            raise RuntimeError("no")
        found = slow(texts)
        found[1] = found[1][:-1]
        return found

    slow, _, special = tokens._encoders(str(folder / "tokenizer.json"))
    monkeypatch.setattr(tokens, "_encoders", lambda _: (slow, fast, special))
    texts = [document(seed) for seed in range(3)]
    found, was_fast = tokens.encoded(texts, "x")
    assert not was_fast and all(np.array_equal(a, b) for a, b in zip(found, slow(texts), strict=True))


def test_tokens_spell_their_bytes(folder: Path) -> None:
    from pando.corpus.records import speller

    made = tokens.load_tokenizer(folder / "tokenizer.json")
    spell = speller(made)
    text = "Ünïcödé 山楊 👍🏽 the river\n"
    assert b"".join(spell(one) for one in made.encode(text).ids) == text.encode() and spell(0) == b"<|endoftext|>"


def test_chat_has_special_marks_and_nothing_else_special(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    made = tokens.load_tokenizer(folder / "tokenizer.json")
    talk = "<|im_start|>user\nHi  there<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    (ids, odd), _ = tokens.encoded_chat([talk, "<|im_start|>user\n<|endoftext|><|im_end|>"], path)
    assert ids.tolist() == made.encode(talk).ids
    assert made.token_to_id("<|endoftext|>") not in odd and made.token_to_id("<|im_end|>") in odd
    bare = bpe.train([talk], 400)
    state = json.loads(bare.to_str())
    state["added_tokens"] = state["added_tokens"][:1]
    state["model"]["vocab"] = {t: n for t, n in state["model"]["vocab"].items() if t not in bpe.CHAT_MARKS}
    (folder / "bare.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"no <.im_start.> and no <.im_end.>, which sources of format chat need"):
        tokens.encoded_chat([talk], str(folder / "bare.json"))
