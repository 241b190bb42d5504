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
from pando.model.tokenizer import Tokenizer


class Grammar:
    """Progress of one sample through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """bool [vocab]: tokens that keep the answer within the grammar; the end token where it may end."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")[: self._vocab_size].astype(bool))

    def advance(self, token: int) -> None:
        """Takes over a sampled token."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} left the grammar: {self._matcher.get_error()}")

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
            source = _source(request, field)
        except ValueError as error:
            raise RequestError(f"{field} cannot be compiled: {_first_line(error)}", field) from None
        matcher = LLMatcher(self._tokens(), source)
        if matcher.is_error():
            raise RequestError(f"{field} cannot be compiled: {_first_line(matcher.get_error())}", field)
        return Grammar(matcher, self._vocab_size)

    def _tokens(self) -> Any:
        if self._ll is None:
            from llguidance import LLTokenizer

            self._ll = LLTokenizer(
                self._tokenizer.raw.to_str(), n_vocab=self._vocab_size, eos_token=sorted(self._tokenizer.eos_ids)
            )
        return self._ll


def _source(request: GenerateRequest, field: str) -> str:
    from llguidance import LLMatcher

    if field == "schema":
        # The spelling of json.dumps, so that training rows and answers look alike; free white space would let a
        # small model emit blanks for ever.
        overrides: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        return str(LLMatcher.grammar_from_json_schema(request.schema or {}, overrides=overrides))
    if field == "regex":
        return str(LLMatcher.grammar_from_regex(request.regex or ""))
    return str(LLMatcher.grammar_from_lark(_choice(request.choices or ())))


def _choice(choices: Sequence[str]) -> str:
    if not choices or any(not choice for choice in choices):
        raise ValueError("choices must be one or more non-empty strings")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0][:300]
