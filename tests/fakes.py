"""A language model without weights: deterministic, instant, and good enough at a task for rungs to work on.

It knows one thing: words listed in `hints` make a label or answer likelier. Scores, features and generations follow
from the text asked about (the last user turn) and a hash of the rest, so that prompts differ a little as real ones do.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pando.errors import ContextLengthError, RequestError
from pando.interface import (
    Capabilities,
    Chunk,
    Completion,
    FeatureRequest,
    Features,
    FinishReason,
    GenerateRequest,
    Identity,
    LanguageModel,
    Latency,
    Message,
    Request,
    ScoreRequest,
    Scores,
    TokenLogprob,
    Usage,
)

DIM = 16
LAYERS = 4
_TURN, _END = "<|im_start|>", "<|im_end|>"


class FakeModel:
    """A `LanguageModel`.

    Args:
        hints: answer -> words that speak for it. Scoring prefers the answer with most of its words in the input;
            features carry these counts from the second layer on.
        noise: size of the prompt's random influence on scores, in nats a token.
        write: what a generation says for an input; by default the best hinted answer.
        fail: inputs that contain this text raise RequestError.
    """

    def __init__(
        self,
        hints: Mapping[str, Sequence[str]] | None = None,
        *,
        name: str = "fake",
        noise: float = 0.05,
        write: Callable[[str], str] | None = None,
        context_length: int = 2048,
        dtype: str = "float32",
        capabilities: Capabilities | None = None,
        fail: str | None = None,
    ) -> None:
        self.hints = {answer: tuple(words) for answer, words in (hints or {}).items()}
        self.identity = Identity(name, f"sha256:{hashlib.sha256(name.encode()).hexdigest()}", f"fake:{name}")
        self.capabilities = capabilities or Capabilities(
            score=True, features=True, embed=True, adapters=True, grammar=True, chat=True, layers=LAYERS
        )
        self.context_length = context_length
        self.dtype = dtype
        self.asked: list[Request] = []  # everything that was answered, in order
        self._noise = noise
        self._write = write
        self._fail = fail
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        return [completion for request in requests for completion in self.submit(request).result()]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self.submit(request).result() for request in requests]

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features]:
        return [self.submit(request).result() for request in requests]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = np.stack([f.vectors[0] for f in self.features([FeatureRequest(text=text) for text in texts])])
        unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit

    def submit(self, request: Request) -> FakeHandle:
        with self._lock:
            self.asked.append(request)
        if isinstance(request, GenerateRequest):
            return FakeHandle(self._generated(request))
        return FakeHandle(self._scored(request) if isinstance(request, ScoreRequest) else self._features(request))

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [f"<{token}>".encode() for token in tokens]

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        turns = "".join(f"{_TURN}{m['role']}\n{m['content']}{_END}\n" for m in messages)
        hidden = "" if messages and messages[0]["role"] == "system" else f"{_TURN}system\nYou are a fake{_END}\n"
        return hidden + turns + (f"{_TURN}assistant\n" if add_generation_prompt else "")

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _generated(self, request: GenerateRequest) -> list[Completion]:
        text = request.prompt if request.messages is None else self.render_chat(request.messages)
        assert isinstance(text, str)
        usage = self._usage(text)
        answer = (self._write or self._best)(_asked(text))
        if request.schema is not None and self._write is None:
            answer = json.dumps({key: answer for key in request.schema.get("properties", {})})
        words = answer.split()[: request.max_tokens]
        tokens = [_number(word) % 1000 for word in words]
        reason: FinishReason = "stop" if len(answer.split()) <= request.max_tokens else "length"
        usage = Usage(usage.prompt_tokens, 0, len(tokens))
        logprobs = [TokenLogprob(t, -0.1) for t in tokens] if request.logprobs is not None else None
        said = " ".join(words) if reason == "length" else answer
        return [Completion(said, tokens, reason, usage, _latency(usage), logprobs, index=i) for i in range(request.n)]

    def _scored(self, request: ScoreRequest) -> Scores:
        assert isinstance(request.context, str)
        usage = self._usage(request.context)
        asked = _asked(request.context)
        texts = [str(c) for c in request.continuations]
        tokens = [max(1, len(text.replace(_END, " .").split())) for text in texts]
        logprobs = []
        for text, n in zip(texts, tokens, strict=True):
            found = self._count(asked, text.replace(_END, "").strip())
            drawn = _unit(request.context.replace(asked, "") + text)
            logprobs.append(n * (-2.0 + found + self._noise * drawn))
        return Scores(logprobs, [False] * len(texts), tokens, usage, _latency(usage))

    def _features(self, request: FeatureRequest) -> Features:
        assert isinstance(request.text, str)
        usage = self._usage(request.text)
        asked = _asked(request.text)
        counts = [float(self._count(asked, answer)) for answer in self.hints][: DIM // 2]
        random = np.random.default_rng(_number(asked))
        vectors = random.normal(size=(LAYERS + 1, DIM))
        vectors[2:, : len(counts)] = vectors[2:, : len(counts)] * 0.1 + counts
        wanted = vectors[[LAYERS if layer == -1 else layer for layer in request.layers]]
        if request.pooling == "both":
            wanted = np.hstack((wanted, wanted[:, ::-1]))
        return Features(wanted.astype(np.float32), usage, _latency(usage))

    def _usage(self, text: str) -> Usage:
        if self._fail is not None and self._fail in _asked(text):
            raise RequestError(f"the fake was told to fail on {self._fail!r}", "prompt")
        tokens = self.count_tokens(text)
        if tokens > self.context_length:
            raise ContextLengthError(tokens, self.context_length)
        return Usage(tokens)

    def _count(self, text: str, answer: str) -> int:
        return sum(word in text.lower() for word in self.hints.get(answer, ()))

    def _best(self, text: str) -> str:
        return max(self.hints, key=lambda answer: self._count(text, answer), default="")


class FakeHandle:
    """An answer that is there at once."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self, timeout: float | None = None) -> Any:
        return self._answer

    def stream(self) -> Iterator[Chunk]:
        for completion in self._answer:
            for word in completion.text.split(" "):
                yield Chunk(completion.index, word + " ")
            yield Chunk(completion.index, "", completion=completion)

    def abort(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def add_done_callback(self, callback: Callable[[FakeHandle], None]) -> None:
        callback(self)


def _asked(text: str) -> str:
    """The last user turn's last paragraph, or the text itself."""
    if _TURN not in text:
        return text
    turn = text.rsplit(f"{_TURN}user\n", 1)[1].split(_END)[0]
    return turn.rsplit("\n\n", 1)[-1]


def _latency(usage: Usage) -> Latency:
    seconds = 1e-5 * (usage.prompt_tokens + 10 * usage.completion_tokens)
    return Latency(0.0, seconds, seconds, seconds)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _unit(text: str) -> float:
    return _number(text) / 2**64


_checked: type[LanguageModel] = FakeModel  # by mypy
