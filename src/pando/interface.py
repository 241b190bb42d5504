"""What is asked of a language model and what it answers.

The local engine and hosted APIs are both a `LanguageModel`; evaluation, adaptation and serving see only this
module. Requests and answers are plain dataclasses without behaviour.

Units: tokens are counts, log-probabilities are natural logarithms (nats), times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant", "content": str}
Truncate = Literal["error", "left"]
Pooling = Literal["mean", "last", "first", "both", "own"]
Side = Literal["query", "document"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One prompt to continue. Exactly one of `prompt` and `messages` is given.

    Attributes:
        prompt: text, or token ids, continued as they stand; BOS only as the tokenizer adds it.
        messages: a chat, rendered by the base model's own template with a generation prompt.
        max_tokens: most tokens to generate for each sample.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: sample from the k likeliest tokens only; 0 means all.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        min_p: drop tokens whose probability is below this share of the likeliest one's.
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens seen before; 1 is none.
        presence_penalty: subtracted once from the logit of each generated token.
        frequency_penalty: subtracted from the logit of each generated token as often as it was generated.
        seed: same seed, same samples, whatever else is in the batch; None draws a fresh one.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, besides the model's own.
        n: how many independent samples.
        logprobs: how many likeliest alternatives to report at each generated token; None reports nothing, 0 only
            the chosen token's own log-probability (always of the unmodified distribution).
        prompt_logprobs: likewise for the tokens of the prompt.
        schema: a JSON Schema that the answer follows.
        regex: a regular expression that the whole answer matches.
        choices: the answer is exactly one of these strings.
        skin: a skin (its name in a server, its folder or a PEFT folder in Python) whose adapter is applied.
        truncate: "error" refuses a prompt that is too long; "left" drops its oldest tokens and counts them, so that an
            answer has `max_tokens`, but no more than half of what the base holds.
        ignore_eos: go on after the model's own end token (for benchmarks).
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[Message] | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    schema: dict[str, Any] | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    skin: str | None = None
    truncate: Truncate = "error"
    ignore_eos: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """How likely is each continuation after the context?

    The context is tokenised as the tokenizer does it (BOS only where it adds one). A continuation's tokens are
    those that the text `context + continuation` adds to the context's own; where the two texts melt into other
    tokens at the seam, the continuation is tokenised alone. An encoder-decoder reads the context and writes the
    continuation. An encoder fills it in: the context holds its mask once, which stands for all of a continuation's
    tokens, and these are told each without the others. A cross-encoder reads context and continuation as a pair of
    texts; its log-probability is that the one answers the other.

    Attributes:
        context: text, or token ids, that comes before.
        continuations: texts, or token id lists, to score; each has at least one token.
        skin: a skin or PEFT folder whose adapter is applied.
        truncate: "error" refuses context + longest continuation beyond the model's length; "left" cuts the context. For
            a cross-encoder "left" cuts the beginning of the continuation, "right" its end.
    """

    context: str | Sequence[int]
    continuations: Sequence[str | Sequence[int]]
    skin: str | None = None
    truncate: Truncate | Literal["right"] = "error"


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """Hidden states of one text, pooled over its tokens.

    Attributes:
        text: the text, or token ids.
        layers: which residual states: 0 is the embedding, i the output of block i, -1 the last block's after the
            final norm (as transformers counts `hidden_states`).
        pooling: "mean" over the tokens from `start` on, the "last" token, the "first" one, "both", mean and last end
            to end, or the base's "own": as its files say how a text becomes a vector (else the mean).
        start: characters at the head of `text` that are computed but not pooled (a shared instruction).
        side: with the pooling "own", whether the text is a "query" or a "document": the base's own prompt for it stands
            before it; None is the one that it says stands before every text, if any.
        skin: a skin or PEFT folder whose adapter is applied.
        max_tokens: most that are read; None: what the base holds (with the pooling "own", what it was trained for).
        truncate: where the text is longer: "left" drops the oldest tokens (but for what the tokenizer adds in front),
            "right" the newest (but for what the tokenizer adds at the end), as sentence-transformers does.
    """

    text: str | Sequence[int]
    layers: Sequence[int] = (-1,)
    pooling: Pooling = "mean"
    start: int = 0
    side: Side | None = None
    skin: str | None = None
    max_tokens: int | None = None
    truncate: Truncate | Literal["right"] = "error"


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `cached_tokens` of the prompt's were reused; `truncated_tokens` were dropped before it."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    truncated_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.truncated_tokens + other.truncated_tokens,
        )


@dataclass(frozen=True)
class Latency:
    """Seconds from submission: waiting for the engine, until the first token, until the end.

    `compute` is this answer's share of the engine's busy seconds, split over a batch by tokens; over all answers
    it adds up to the engine's busy time, and is what a call costs.
    """

    queue: float = 0.0
    first_token: float = 0.0
    total: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """One token with its log-probability and the likeliest alternatives at its place (id, log-probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample. `tokens` includes the end token if one was generated; `text` does not.

    `logprobs` has one entry per token where asked for, else is None; `prompt_logprobs` likewise, its first entry
    None (nothing comes before it).
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    latency: Latency
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_tokens: list[int] = field(default_factory=list)
    index: int = 0


@dataclass(frozen=True)
class Scores:
    """One entry per continuation: summed log-probability, whether each of its tokens was the likeliest, tokens."""

    logprobs: list[float]
    greedy: list[bool]
    tokens: list[int]
    usage: Usage = Usage()
    latency: Latency = Latency()


@dataclass(frozen=True)
class Features:
    """`vectors` float32 [len(layers), d_model], twice as wide where both poolings were asked for."""

    vectors: np.ndarray
    usage: Usage = Usage()
    latency: Latency = Latency()


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed sample. The last one of a sample carries its `completion`."""

    index: int
    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    completion: Completion | None = None


@dataclass(frozen=True)
class Identity:
    """Which base model this is. `hash` is "sha256:..." over config, tokenizer and weights."""

    name: str
    hash: str
    source: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a model can do. Callers ask this, never the class.

    Attributes:
        score: tells how likely answers are: what follows a context or, of one that does not `generate`, what fills its
            `blank`.
        pairs: a score tells how well a continuation answers its context, each pair read as one (cross-encoders).
        demonstrations: learns from solved rows that stand before an input.
        blank: the token that stands for what is to be told, where there is one: an encoder's mask or the first sentinel
            of an encoder-decoder, which then writes it before its answer.
        layers: how many there are to read features from.
    """

    generate: bool = True
    score: bool = False
    features: bool = False
    embed: bool = False
    adapters: bool = False
    grammar: bool = False
    chat: bool = False
    train: bool = False
    pairs: bool = False
    demonstrations: bool = True
    blank: str | None = None
    layers: int = 0


Request = GenerateRequest | ScoreRequest | FeatureRequest
Answer = list[Completion] | Scores | Features


class Handle(Protocol):
    """A submitted request. `result` blocks; `stream` yields chunks of a generation as they come; `abort` ends it.

    `add_done_callback(fn)` calls fn(handle) on the engine's thread once the answer or error is there.
    """

    def result(self, timeout: float | None = None) -> Any: ...
    def stream(self) -> Iterator[Chunk]: ...
    def abort(self) -> None: ...
    def done(self) -> bool: ...
    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...


@runtime_checkable
class LanguageModel(Protocol):
    """What evaluation, adaptation and serving see of a model, local or hosted."""

    @property
    def identity(self) -> Identity: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def context_length(self) -> int: ...
    @property
    def dtype(self) -> str: ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]: ...
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]: ...
    def features(self, requests: Sequence[FeatureRequest]) -> list[Features]: ...
    def embed(self, texts: Sequence[str]) -> np.ndarray: ...
    def submit(self, request: Request) -> Handle: ...
    def count_tokens(self, text: str) -> int: ...
    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]: ...
    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str: ...
    def close(self) -> None: ...
