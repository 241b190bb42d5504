"""Structured output: JSON Schema, regular expression or choice, compiled by llguidance to masks over the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pando.errors import RequestError
from pando.interface import GenerateRequest
from pando.model.spelling import Spelling
from pando.model.tokenizer import Tokenizer


class Grammar:
    """Progress of one sample through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int, field: str) -> None:
        self._matcher, self._vocab_size, self._field = matcher, vocab_size, field

    def again(self) -> Grammar:
        """The same progress of another sample."""
        return Grammar(self._matcher.deep_copy(), self._vocab_size, self._field)

    def allowed(self) -> Tensor:
        """bool [vocab]: tokens that keep the answer within the grammar; the end token where it may end.

        Raises:
            RequestError: the grammar has grown beyond what llguidance holds.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # its mask allows the end alone, wherever the answer is
            why = _first_line(self._matcher.get_error())
            raise RequestError(f"{self._field} is too complex to be followed further: {why}", self._field)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")[: self._vocab_size].astype(bool))

    def advance(self, token: int) -> None:
        """Takes over a sampled token.

        Raises:
            RequestError: no token spells what the grammar asks for here.
        """
        if not self._matcher.consume_token(token):
            raise RequestError(f"{self._field} asks for a text that this base's tokenizer cannot spell", self._field)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles the grammars of requests for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ll: Any = None

    def compile(self, request: GenerateRequest) -> Grammar | None:
        """The request's grammar, or None if its answer is free.

        Raises:
            RequestError: the schema or expression cannot be compiled; names the field.
        """
        from llguidance import LLMatcher

        wanted = [name for name in ("schema", "regex", "choices") if getattr(request, name) is not None]
        if not wanted:
            return None
        field = wanted[0]
        try:
            source = _source(request, field, '" "? ' if self._tokenizer.drops_space else "")
        except ValueError as error:
            raise RequestError(f"{field} cannot be compiled: {_first_line(error)}", field) from None
        matcher = LLMatcher(self._tokens(), source)
        if matcher.is_error():
            raise RequestError(f"{field} cannot be compiled: {_first_line(matcher.get_error())}", field)
        return Grammar(matcher, self._vocab_size, field)

    def _tokens(self) -> Any:
        if self._ll is None:
            from llguidance import LLTokenizer

            known: Any = self._tokenizer.raw.to_str()
            how: Any = {"n_vocab": self._vocab_size, "eos_token": sorted(self._tokenizer.eos_ids)}
            try:
                self._ll = LLTokenizer(known, **how)
            except (
                ValueError
            ):  # a decoder that llguidance does not read (SentencePiece's): it is told each token's bytes
                spelled: Any = _Spelled(self._tokenizer, self._vocab_size)
                self._ll = LLTokenizer(spelled, **how)
        return self._ll


class _Spelled:
    """A tokenizer as llguidance takes one that it cannot read by itself: by the bytes of its tokens. What a grammar
    leaves no choice about is written in the longest tokens that fit."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        added = tokenizer.raw.get_added_tokens_decoder()
        self.tokens = Spelling(tokenizer.raw)(range(vocab_size))
        self.special_token_ids = sorted(added)
        self.eos_token_id, self.bos_token_id = min(tokenizer.eos_ids, default=0), tokenizer.bos_id
        self._ids = {spelled: i for i, spelled in enumerate(self.tokens) if spelled and i not in added}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[int]:
        rest, found = text.encode(), []
        while rest:
            sizes = range(min(self._longest, len(rest)), 0, -1)
            size = next((size for size in sizes if rest[:size] in self._ids), None)
            if size is None:
                break  # no token spells it; llguidance takes what there is
            found.append(self._ids[rest[:size]])
            rest = rest[size:]
        return found


def _source(request: GenerateRequest, field: str, before: str) -> str:
    """The grammar; `before` is what may stand before an answer."""
    from llguidance import LLMatcher

    if field == "schema":
        # The spelling of json.dumps, so that training rows and answers look alike; free white space would let a
        # small model emit blanks for ever.
        overrides: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        if not before:
            return str(LLMatcher.grammar_from_json_schema(request.schema or {}, overrides=overrides))
        schema = json.dumps({**(request.schema or {}), "x-guidance": overrides}, ensure_ascii=False)
        return str(LLMatcher.grammar_from_lark(f"start: {before}answer\nanswer: %json {schema}"))
    if field == "regex":
        return str(LLMatcher.grammar_from_regex((" ?(?:{})" if before else "{}").format(request.regex or "")))
    return str(LLMatcher.grammar_from_lark(f"start: {before}({_choice(request.choices or ())})"))


def _choice(choices: Sequence[str]) -> str:
    if not choices or any(not choice for choice in choices):
        raise ValueError("choices must be one or more non-empty strings")
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0][:300]
