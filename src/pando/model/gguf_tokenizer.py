"""The tokenizer inside a GGUF file, as the `tokenizer.json` that Hugging Face's library reads.

The JSON is written by hand and not by that library, so that the same GGUF gives the same bytes under any version of
it: the content hash of a base, and with it every skin, depends on them.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pando.errors import BaseModelError
from pando.model.checkpoint import read_json
from pando.model.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CASED = (  # letters with cases, as DeepSeek lists them
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(*regexes: str, digits: bool = False) -> list[dict[str, Any]]:
    """Cut by one after the other; `digits`: and then each digit by itself."""
    return [
        *({"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False} for one in regexes),
        *([_EACH_DIGIT] if digits else []),
        _byte_level(use_regex=False),
    ]


_EACH_DIGIT = {"type": "Digits", "individual_digits": True}
_GPT2 = [_byte_level(use_regex=True)]
_DIGITS = [_EACH_DIGIT, *_GPT2]
_PRE_TOKENIZERS = {  # tokenizer.ggml.pre
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "roberta-bpe": _GPT2,
    "modern-bert": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _split(_LLAMA3),
    "llama3": _split(_LLAMA3),
    "llama-v3": _split(_LLAMA3),
    "dbrx": _split(_LLAMA3),
    "smaug-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
    "deepseek-llm": _split(r"[\r\n]", _CASED, _MARKS, r"\s+$", _EAST_ASIAN, digits=True),
    "deepseek-coder": _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, digits=True),
    "deepseek-v3": _split(
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
_NAMED = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "cls": "cls", "sep": "seperator",
    "mask": "mask",
}  # fmt: skip
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3"}  # a word that is a token is taken without merging
_COMPOSED = {"qwen2", "modern-bert"}  # text is brought to Unicode's NFC first


def read_tokenizer(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`tokenizer.ggml.*` and the chat template -> {"tokenizer.json": ..., "tokenizer_config.json": ...,
    "generation_config.json": ...}.

    Raises:
        BaseModelError: a key is missing or of a kind that is not supported; the message names it.
    """
    tokens: list[str] = _field(fields, "tokens")
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(types) != len(tokens):
        raise BaseModelError("tokenizer.ggml.tokens holds a token twice, or does not fit tokenizer.ggml.token_type")
    kind = _field(fields, "model")
    if kind == "gpt2":
        parts = _bpe(fields, vocab)
    elif kind == "llama":
        parts = _sentencepiece(fields, vocab, types)
    elif kind == "t5":
        parts = _unigram(fields, vocab, types)
    elif kind == "bert":
        tokens = [_word_piece(token, i) for token, i in zip(tokens, types, strict=True)]
        parts = _word_pieces(tokens)
    else:
        raise BaseModelError(f"tokenizer.ggml.model {kind!r} is not supported; supported are gpt2, llama, t5 and bert")
    specials = _specials(fields, tokens)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, tokens[i], t == _CONTROL) for i, t in enumerate(types) if t in (_CONTROL, _USER)],
        **parts,
        "post_processor": _post_processor(fields, specials, kind),
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(fields, specials),
        "generation_config.json": _generation_config(fields, specials),
    }


def _field(fields: dict[str, Any], name: str) -> Any:
    key = f"tokenizer.ggml.{name}"
    if key not in fields:
        raise BaseModelError(f"the key {key} is missing")
    return fields[key]


def _bpe(fields: dict[str, Any], vocab: dict[str, int]) -> dict[str, Any]:
    """Byte-level BPE (as GPT-2's) with the model's own way to cut text into words."""
    pre = _field(fields, "pre")
    if pre not in _PRE_TOKENIZERS:
        raise BaseModelError(f"tokenizer.ggml.pre {pre!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}")
    merges = [merge.split(" ") for merge in _field(fields, "merges")]
    wrong = next((m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= vocab.keys()), None)
    if wrong is not None:
        raise BaseModelError(f"tokenizer.ggml.merges: {' '.join(wrong)!r} does not join two tokens into a third")
    return {
        "normalizer": {"type": "NFC"} if pre in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(vocab, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST),
    }


def _sentencepiece(fields: dict[str, Any], vocab: dict[str, int], types: list[int]) -> dict[str, Any]:
    """SentencePiece's BPE: spaces are "▁", unknown characters fall back to bytes, scores rank the merges."""
    scores: list[float] = _field(fields, "scores")
    if len(scores) != len(vocab):
        raise BaseModelError("tokenizer.ggml.scores does not fit tokenizer.ggml.tokens")
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((token for token, i in vocab.items() if types[i] == _UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(vocab, _ranked_merges(vocab, scores, types), unknown=unknown, byte_fallback=True),
    }


def _unigram(fields: dict[str, Any], vocab: dict[str, int], types: list[int]) -> dict[str, Any]:
    """SentencePiece's unigram model (T5's): of all ways to cut a text the likeliest."""
    scores: list[float] = _field(fields, "scores")
    unknown = next((i for i, kind in enumerate(types) if kind == _UNKNOWN), None)
    if len(scores) != len(vocab) or unknown is None:
        raise BaseModelError("tokenizer.ggml.scores does not fit tokenizer.ggml.tokens, or none of these is unknown")
    charsmap = fields.get("tokenizer.ggml.precompiled_charsmap")
    steps: list[dict[str, Any]] = []
    if charsmap:
        packed = base64.b64encode(bytes(value & 0xFF for value in charsmap)).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": packed})
    if fields.get("tokenizer.ggml.remove_extra_whitespaces", True):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if fields.get("tokenizer.ggml.add_space_prefix", True) else "never"
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": spaces,
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[token, score] for token, score in zip(vocab, scores, strict=True)],
            "byte_fallback": _BYTE in types,
        },
    }


def _word_piece(token: str, kind: int) -> str:
    """What llama.cpp writes "▁word" and "part" is "word" and "##part"."""
    if kind == _CONTROL:
        return token
    return token[1:] if token.startswith("▁") else f"##{token}"


def _word_pieces(tokens: list[str]) -> dict[str, Any]:
    """BERT's WordPiece, which llama.cpp runs on lower-case text without accents."""
    if "[UNK]" not in tokens:
        raise BaseModelError("tokenizer.ggml.tokens has no [UNK]")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": True,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(tokens)},
        },
    }


def _ranked_merges(vocab: dict[str, int], scores: list[float], types: list[int]) -> list[list[str]]:
    """Every way to make a token of two others, best score first; of equal ones the longer left part first."""
    ranked: list[tuple[float, int, int, list[str]]] = []
    for token, i in vocab.items():
        if types[i] != _NORMAL:
            continue
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [(left, right) for left, right in pairs if left in vocab and right in vocab]
        found.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ranked += [(scores[i], len(left), len(right), [left, right]) for left, right in found]
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [pair for *_, pair in ranked]


def _model(
    vocab: dict[str, int],
    merges: list[list[str]],
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _added(i: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, **flags, "special": special}


def _specials(fields: dict[str, Any], tokens: list[str]) -> dict[str, tuple[int, str]]:
    """{"bos": (id, token), ...} for those that the file names."""
    found = {}
    for name, key in _NAMED.items():
        i = fields.get(f"tokenizer.ggml.{key}_token_id")
        if i is None:
            continue
        if not 0 <= i < len(tokens):
            raise BaseModelError(f"tokenizer.ggml.{key}_token_id {i} is not a token (there are {len(tokens)})")
        found[name] = (i, tokens[i])
    return found


def _post_processor(fields: dict[str, Any], specials: dict[str, tuple[int, str]], kind: str) -> dict[str, Any] | None:
    """The end tokens that are put around a text, as the file says, or as llama.cpp does where it does not."""
    pre = fields.get("tokenizer.ggml.pre")
    encoder = kind == "bert" or pre in ("roberta-bpe", "modern-bert")
    usual = {"bos": encoder or kind == "llama" or pre in _WHOLE_WORDS_FIRST, "eos": encoder or kind == "t5"}
    ends = {name: bool(fields.get(f"tokenizer.ggml.add_{name}_token", usual[name])) for name in usual}
    for name, own in (("bos", "cls"), ("eos", "sep")):
        if kind == "bert" and own in specials:
            specials = specials | {name: specials[own]}
    for name in (name for name, added in ends.items() if added and name not in specials):
        raise BaseModelError(f"a {name} token is to be added, but tokenizer.ggml.{name}_token_id is missing")

    def marker(name: str, sequence: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": specials[name][1], "type_id": sequence}}] if ends[name] else []

    if not any(ends.values()):
        return None
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    between = marker("eos", 1) if pre == "roberta-bpe" else [] if encoder else marker("bos", 1)  # it has its end twice
    used = [specials[name] for name, added in ends.items() if added]
    return {
        "type": "TemplateProcessing",
        "single": [*marker("bos", 0), first, *marker("eos", 0)],
        "pair": [*marker("bos", 0), first, *marker("eos", 0), *between, second, *marker("eos", 1)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in used},
    }


def _tokenizer_config(fields: dict[str, Any], specials: dict[str, tuple[int, str]]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": token for name, (_, token) in specials.items() if name != "eot"}
    if isinstance(fields.get("tokenizer.chat_template"), str):
        config["chat_template"] = fields["tokenizer.chat_template"]
    return config


def _generation_config(fields: dict[str, Any], specials: dict[str, tuple[int, str]]) -> dict[str, Any]:
    config: dict[str, Any] = {f"{name}_token_id": specials[name][0] for name in ("bos", "pad") if name in specials}
    ends = sorted({specials[name][0] for name in ("eos", "eot") if name in specials})
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return config


def write_tokenizer(folder: Path, vocab_size: int) -> dict[str, Any]:
    """The tokenizer of a Hugging Face folder as the fields that `read_tokenizer` reads. Only byte-level BPE has one.

    Args:
        vocab_size: rows of the model's table; those that are no token are filled up with unused ones.

    Raises:
        BaseModelError: a part of the tokenizer has no form in GGUF; names it.
    """
    path = folder / "tokenizer.json"
    raw, tokenizer = read_json(path), Tokenizer(folder)
    model = raw.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("unk_token"):
        raise BaseModelError(f"{path}: only byte-level BPE can be written as GGUF here, not {model.get('type')}")
    tokens = [tokenizer.raw.id_to_token(i) for i in range(vocab_size)]
    special = {entry["id"]: entry.get("special", False) for entry in raw.get("added_tokens") or []}
    types = [_UNUSED if token is None else _NORMAL for token in tokens]
    for i, control in special.items():
        types[i] = _CONTROL if control else _USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = tokenizer.encode("a")
    bos, eos = tokenizer.bos_id, tokenizer.raw.token_to_id(tokenizer.specials.get("eos_token", ""))
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": _pre_name(path, raw, bool(model.get("ignore_merges"))),
        "tokens": [token or f"[unused {i}]" for i, token in enumerate(tokens)],
        "token_type": types,
        "merges": merges,
        "add_bos_token": len(ids) > 1 and ids[0] == bos,
        "add_eos_token": len(ids) > 1 and ids[-1] == eos,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "padding_token_id": tokenizer.raw.token_to_id(tokenizer.specials.get("pad_token", "")),
    }
    others = sorted(tokenizer.eos_ids - {eos})
    if others:
        fields["eot_token_id"] = others[0]
    found = {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}
    template = tokenizer.template_source
    return found if template is None else found | {"tokenizer.chat_template": template}


def _pre_name(path: Path, raw: dict[str, Any], ignore_merges: bool) -> str:
    """What llama.cpp calls the way this tokenizer cuts text into words."""
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps.get("type") == "Sequence" else [steps]
    normalizer = (raw.get("normalizer") or {}).get("type")
    for name, known in _PRE_TOKENIZERS.items():
        same = (name in _WHOLE_WORDS_FIRST) == ignore_merges and normalizer == ("NFC" if name in _COMPOSED else None)
        if same and _bare(steps) == _bare(known):
            return name
    raise BaseModelError(
        f"{path}: llama.cpp has no name for the way this tokenizer cuts text (pre_tokenizer, normalizer); use --to hf"
    )


def _bare(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what bears on offsets only."""
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
