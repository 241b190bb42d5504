"""Tokens and their log-probabilities as the two OpenAI routes spell them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from pando.interface import Completion, LanguageModel, TokenLogprob, Usage

_LEAST = -9999.0  # JSON has no minus infinity; OpenAI sends this in its place


def usage(spent: Usage) -> dict[str, Any]:
    """The usage object of every answer."""
    details = {"cached_tokens": spent.cached_tokens}
    if spent.truncated_tokens:
        details["truncated_tokens"] = spent.truncated_tokens
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
        "prompt_tokens_details": details,
    }


def text_of(model: LanguageModel, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones by name."""
    return b"".join(model.token_bytes(tokens)).decode(errors="replace")


def chat_logprobs(model: LanguageModel, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat: {"content": [{token, bytes, logprob, top_logprobs}], "refusal": null}."""
    content = []
    for entry in entries:
        top = [_chat_token(model, token, logprob) for token, logprob in entry.top]
        content.append(_chat_token(model, entry.token, entry.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _chat_token(model: LanguageModel, token: int, logprob: float) -> dict[str, Any]:
    (spelled,) = model.token_bytes([token])
    text = spelled.decode(errors="replace")
    return {"token": text, "bytes": list(spelled), "logprob": max(logprob, _LEAST)}


def prompt_entries(completion: Completion) -> list[tuple[int, TokenLogprob | None]]:
    """The prompt's tokens with their log-probabilities; the first has none."""
    assert completion.prompt_logprobs is not None
    return list(zip(completion.prompt_tokens, completion.prompt_logprobs, strict=True))


class CompletionLogprobs:
    """`choices[].logprobs` of a plain completion, for one choice, whole or piece by piece of its stream.

    Args:
        offset: characters of the choice's text that came before the first token.
    """

    def __init__(self, model: LanguageModel, offset: int = 0) -> None:
        self._model = model
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, entries: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, Any]:
        """{tokens, token_logprobs, top_logprobs, text_offset} of the next tokens; None where nothing comes before.

        `top_logprobs` holds the token itself too, so up to one more than was asked for.
        """
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, entry in entries:
            (spelled,) = self._model.token_bytes([token])
            found["tokens"].append(_readable(spelled))
            found["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(spelled))
            found["token_logprobs"].append(None if entry is None else max(entry.logprob, _LEAST))
            found["top_logprobs"].append(None if entry is None else self._top(entry))
        return found

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in [*entry.top, (entry.token, entry.logprob)]:
            # tokens that are spelled alike share a place, where the likelier one stays
            top.setdefault(_readable(self._model.token_bytes([token])[0]), max(logprob, _LEAST))
        return top


def _readable(spelled: bytes) -> str:
    """A token that is only a part of a character is spelled as OpenAI does: bytes:\\xe2\\x80."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
