from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers

from pando.errors import BaseModelError
from pando.model.base import open_base
from pando.model.tokenizer import Detokenizer, Tokenizer
from tests.model import tiny

TEXTS = [
    *tiny.TEXT,
    "",
    " ",
    "\n\n",
    "<|im_start|>user\n007 <|im_end|>",
    "a\u0301\u200d\u2028\ufffd",
    "\U0001f469\u200d\U0001f680" * 3,
]
# Published ids of SmolLM2's own tokenizer.json, which the one made from the GGUF must give.
SMOLLM2 = {
    "Hello world": [19556, 905],
    "The year 2024 had 365 days; 12 months.": [
        *(504, 713, 216, 34, 32, 34, 36, 761, 216, 35, 38, 37, 2009, 43, 216, 33, 34, 2704, 30),
    ],
    "  leading and   multiple   spaces  ": [216, 2899, 284, 256, 2701, 256, 5600, 256],
    "Gr\u00fc\u00dfe, caf\u00e9!": [27302, 7170, 34878, 85, 28, 37366, 17],
    "'s 't 're 've 'm 'll 'd": [506, 637, 100, 637, 257, 637, 307, 637, 93, 637, 764, 637, 84],
    "Hello, \u4e16\u754c!": [19556, 28, 216, 7906, 240, 178, 239, 230, 17],
    "Tab\there\nNewline\n\nDouble": [30064, 197, 1531, 198, 5529, 1311, 198, 198, 33743],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """In the manner of Llama 2: spaces are "▁", unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc")]
    for token in ("▁", "a", "b", "c", "▁a", "bc", "▁abc"):
        vocab[token] = len(vocab)
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = tmp_path_factory.mktemp("pieces")
    tiny.write_tokenizer(folder, raw, bos_token="<s>", eos_token="</s>")
    return Tokenizer(folder)


def streamed(tokenizer: Tokenizer, ids: list[int], step: int = 1) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [stream.add(ids[i : i + step]) for i in range(0, len(ids), step)] + [stream.finish()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.integers(1, 5))
@example("000" + "\x80" * 6 + "\U00010000" * 4 + "00", 1)  # a long stream whose last tokens begin inside a character
def test_text_comes_back_whole_and_in_pieces(tokenizer: Tokenizer, pieces: Tokenizer, text: str, step: int) -> None:
    for one in (tokenizer, pieces):
        ids = one.encode(text)
        assert one.decode(ids, skip_special=False) == text
        parts = streamed(one, ids, step)
        assert "".join(parts) == one.decode(ids)
        assert all("\ufffd" not in part for part in parts[:-1]) or "\ufffd" in text


@given(st.lists(st.integers(0, 319), max_size=80))
def test_any_tokens_stream_to_what_they_decode_to(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.lists(st.sampled_from([3 + b for b in "日本🎉é".encode()] + list(range(259, 266))), max_size=60))
def test_bytes_of_pieces_never_stream_as_broken_text(pieces: Tokenizer, ids: list[int]) -> None:
    whole = pieces.decode(ids)
    parts = streamed(pieces, ids)
    if "\ufffd" not in whole:
        assert "".join(parts) == whole
        assert all("\ufffd" not in part for part in parts)


def test_streaming_gives_text_out_at_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    parts = streamed(tokenizer, ids)
    assert all(parts[:-1]) and parts[-1] == ""
    long = tokenizer.encode("The quick brown fox. " * 200)
    assert "".join(streamed(tokenizer, long)) == "The quick brown fox. " * 200


@pytest.mark.real
def test_pulled_tokenizer_gives_the_published_ids_of_smollm2() -> None:
    tokenizer = open_base().tokenizer
    assert {text: tokenizer.encode(text) for text in SMOLLM2} == SMOLLM2
    assert tokenizer.eos_ids == {2} and tokenizer.bos_id == 1 and tokenizer.vocab_size == 49152
    chat = tokenizer.render_chat([{"role": "user", "content": "Hi there"}])
    system = [9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
    assert tokenizer.encode(chat) == [1, *system, 2, 198, 1, 4093, 198, 26843, 665, 2, 198, 1, 520, 9531, 198]


@pytest.mark.real
def test_pulled_tokenizer_equals_transformers() -> None:
    from transformers import AutoTokenizer

    base = open_base()
    theirs = AutoTokenizer.from_pretrained(base.folder)
    for text in [*TEXTS, *SMOLLM2, "x" * 5000, "".join(map(chr, range(32, 0x3000)))]:
        ids = base.tokenizer.encode(text)
        assert ids == theirs(text).input_ids
        assert base.tokenizer.decode(ids, skip_special=False) == theirs.decode(ids)
        assert "".join(streamed(base.tokenizer, ids)) == base.tokenizer.decode(ids)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    for chat in (messages, messages[1:]):
        for prompt in (True, False):
            wanted = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert base.tokenizer.render_chat(chat, prompt) == wanted
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_continuations_are_what_they_add_or_stand_alone(tokenizer: Tokenizer) -> None:
    context = "The quick brown"
    ids = tokenizer.encode(context)
    added, melted, nothing = tokenizer.encode_continuations(context, ids, [" fox", "ie", ""])
    assert added == tokenizer.encode(context + " fox")[len(ids) :]
    assert tokenizer.decode(added) == " fox"
    assert melted == tokenizer.encode("ie", add_special=False)
    assert nothing == []


@given(st.sampled_from(tiny.TEXT), st.integers(0, 40), st.text("abc fox.12", min_size=1, max_size=8))
def test_continuations_follow_the_rule(tokenizer: Tokenizer, text: str, cut: int, more: str) -> None:
    context = text[:cut]
    ids = tokenizer.encode(context)
    (found,) = tokenizer.encode_continuations(context, ids, [more])
    whole = tokenizer.encode(context + more)
    wanted = whole[len(ids) :] if whole[: len(ids)] == ids and len(whole) > len(ids) else tokenizer.encode(more)
    assert found == wanted


def test_offsets_cover_the_text(tokenizer: Tokenizer) -> None:
    text = "naïve 日本 x"
    offsets = tokenizer.offsets(text)
    assert len(offsets) == len(tokenizer.encode(text))
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)


def test_settings_of_a_training_run_in_the_file_do_not_pad_or_cut(tmp_path: Path) -> None:
    raw = tiny.tokenizer()
    raw.enable_padding(length=64)
    raw.enable_truncation(4)
    tiny.write_tokenizer(tmp_path, raw)
    text = "The quick brown fox jumps"
    assert Tokenizer(tmp_path).encode(text) == tiny.tokenizer().encode(text).ids


def test_end_tokens_are_gathered_from_all_files(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path, eos_token={"content": "<|im_end|>", "lstrip": False})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert Tokenizer(tmp_path).eos_ids == {0, 1, 2}


def test_bos_is_added_once(tmp_path: Path) -> None:
    """A template that writes BOS over a tokenizer that adds it, as Llama 3's."""
    from tokenizers.processors import TemplateProcessing

    raw = tiny.tokenizer()
    raw.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tiny.write_tokenizer(tmp_path, raw, chat_template="{{ bos_token }}{{ messages[0].content }}")
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": "dog"}])).count(1) == 1
    assert tokenizer.encode("dog")[0] == 1
    assert tokenizer.encode("dog", add_special=False)[0] != 1


def test_template_file_goes_before_the_one_in_the_config(tmp_path: Path) -> None:
    tiny.write_tokenizer(
        tmp_path, chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    )
    chat = [{"role": "user", "content": "x"}]
    assert Tokenizer(tmp_path).render_chat(chat) == "d"
    (tmp_path / "chat_template.jinja").write_text("f")
    assert Tokenizer(tmp_path).render_chat(chat) == "f"
    assert Tokenizer(tmp_path).has_template


def test_without_a_template_the_plain_form_is_used(tokenizer: Tokenizer) -> None:
    assert not tokenizer.has_template
    assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]) == "User: Hi\n\nAssistant:"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Mystery"}}'])
def test_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_a_cut_text_ends_as_texts_do(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tiny.write_tokenizer(tmp_path)
    plain = Tokenizer(tmp_path)
    ids = plain.encode(tiny.TEXT[0])
    assert plain.cut(ids, 5) == ids[:5] and plain.cut(ids, len(ids)) == ids
    made = tiny.tokenizer()
    made.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    tiny.write_tokenizer(tmp_path, made)
    marked = Tokenizer(tmp_path)
    assert marked.cut(marked.encode(tiny.TEXT[0]), 5) == [1, *ids[:3], 2]


def test_what_an_encoder_reads_is_no_beginning_of_what_follows(tmp_path: Path) -> None:
    made = tiny.tokenizer()
    made.add_special_tokens(["<mask>", "<extra_id_0>"])
    tiny.write_tokenizer(tmp_path, made, mask_token="<mask>")
    reader = Tokenizer(tmp_path, reads=True)
    (found,) = reader.encode_continuations("The quick", reader.encode("The quick"), [" brown"])
    assert found == reader.encode(" brown", add_special=False)
    assert (reader.mask, reader.sentinel) == ("<mask>", "<extra_id_0>")
    tiny.write_tokenizer(tmp_path)
    assert (Tokenizer(tmp_path).mask, Tokenizer(tmp_path).sentinel) == (None, None)
