"""From requests to jobs: checks every field, tokenises, cuts or refuses what is too long. Runs where it is called."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import get_args

from pando.engine.generation import Generation
from pando.engine.grammar import Grammars
from pando.engine.jobs import Source
from pando.engine.readings import Filling, Following, Pairing, Pooling, Scoring
from pando.engine.sampler import Sampler
from pando.errors import ContextLengthError, RequestError
from pando.interface import FeatureRequest, GenerateRequest, ScoreRequest
from pando.interface import Pooling as PoolingKind
from pando.model.base import BaseModel
from pando.model.config import ModelConfig
from pando.model.lora import LoraAdapter
from pando.model.transformer import Transformer

MAX_SAMPLES = 128
Scored = Scoring | Following | Filling | Pairing


class RequestCompiler:
    """Makes jobs of requests for one base.

    `root` names the base's weights in cache keys; an adapter's digest is added to it.
    """

    def __init__(self, base: BaseModel, module: Transformer) -> None:
        self._config, self._module = base.config, module
        self._tokenizer = base.tokenizer
        self._embedding = base.embedding
        self._root = base.identity.hash.encode()
        self._grammars = Grammars(base.tokenizer, base.config.vocab_size)

    def generation(self, request: GenerateRequest, adapter: LoraAdapter | None) -> list[Generation]:
        """One job for each sample.

        Raises:
            RequestError: a field is out of range or the prompt too long.
        """
        self._needs_decoder("generate")
        _check_generation(request, self._config.vocab_size)
        if request.messages is not None:
            text = self._tokenizer.render_chat(request.messages, add_generation_prompt=True)
            prompt = self._tokenizer.encode(text)
        else:
            assert request.prompt is not None
            prompt = self._ids(request.prompt, "prompt")
        field = "prompt" if request.messages is None else "messages"
        if not prompt:
            raise RequestError(f"{field} has no tokens and this tokenizer adds none of its own", field)
        room, most = min(request.max_tokens, 1), self._config.context_length
        if request.truncate == "left" and len(prompt) > most - room:  # half of what there is, at most, for the answer
            room = min(request.max_tokens, max(1, most // 2))
        prompt, source, truncated = self._sides(prompt, room, request.truncate, field, adapter)
        if source is not None and request.prompt_logprobs is not None:
            raise RequestError("an encoder-decoder reads its prompt and does not predict it", "prompt_logprobs")
        seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 63)
        jobs, compiled = [], self._grammars.compile(request)
        for index in range(request.n):
            sampler = Sampler(request, seed, index, frozenset(prompt))
            grammar = None if compiled is None else compiled.again()
            own = None if source is None else source.again()  # each sample holds its places for itself
            job = Generation(request, prompt, sampler, grammar, self._tokenizer, adapter, self._key(adapter), own)
            job.limit = min(request.max_tokens, self._config.context_length - len(prompt))
            job.truncated = truncated
            jobs.append(job)
        return jobs

    def scoring(self, request: ScoreRequest, adapter: LoraAdapter | None) -> Sequence[Scored]:
        """Raises RequestError if nothing can be scored or the context and a continuation do not fit together."""
        if self._config.judges:
            return self._pairs(request, adapter)
        context = self._ids(request.context, "context")
        if not context:
            raise RequestError("context has no tokens and this tokenizer adds none of its own", "context")
        if not request.continuations or isinstance(request.continuations, str):
            raise RequestError("continuations must be a list of one or more texts", "continuations")
        continuations = self._continuations(request, context)
        if self._config.both_ways:
            return [self._filling(request, context, continuations, adapter)]
        longest = max(map(len, continuations)) - 1  # the last token is only predicted
        if longest >= self._config.context_length:
            raise ContextLengthError(len(context) + longest, self._config.context_length, "continuations")
        context, source, truncated = self._sides(context, longest, request.truncate, "context", adapter, longest)
        key = self._key(adapter)
        short = [number for number, one in enumerate(continuations) if len(one) <= Scoring.LIMIT]
        jobs: list[Scoring | Following] = []
        if short:
            jobs.append(Scoring(context, [continuations[number] for number in short], adapter, key, source))
        long = [number for number, one in enumerate(continuations) if len(one) > Scoring.LIMIT]
        for number in long:
            own = None if source is None else source.again()
            jobs.append(Following(context, continuations[number], adapter, key, own))
        for job in jobs:
            job.order = [*([short] if short else []), *([number] for number in long)]
            job.truncated = truncated
        return jobs

    def _filling(
        self, request: ScoreRequest, context: list[int], fillings: list[list[int]], adapter: LoraAdapter | None
    ) -> Filling:
        """Scores of what may stand in the place of an encoder's mask."""
        text = self._tokenizer.mask
        mask = None if text is None or not self._config.predicts else self._tokenizer.raw.token_to_id(text)
        if mask is None:
            raise RequestError(f"this encoder ({self._config.family}) has no head that predicts, or no mask", "model")
        if context.count(mask) != 1:
            raise RequestError(f"an encoder fills in: the context must hold {text} once", "context")
        longest = max(map(len, fillings)) - 1
        if longest >= self._config.context_length:
            raise ContextLengthError(len(context) + longest, self._config.context_length, "continuations")
        context, truncated = self._fit(
            context, self._config.context_length - longest, request.truncate, "context", longest
        )
        if mask not in context:
            raise RequestError(f"{text} does not stand among the last tokens, which truncate='left' keeps", "context")
        job = Filling(context, context.index(mask), fillings, adapter, self._key(adapter))
        job.truncated = truncated
        return job

    def _pairs(self, request: ScoreRequest, adapter: LoraAdapter | None) -> list[Pairing]:
        """A job for each pair of texts."""
        texts = [request.context, *request.continuations]
        if not request.continuations or not all(isinstance(text, str) for text in texts):
            raise RequestError("a cross-encoder reads texts: context and continuations must be texts", "context")
        if request.truncate not in (known := ("error", "left", "right")):
            raise RequestError(f"truncate must be one of {', '.join(known)}, not {request.truncate!r}", "truncate")
        jobs, most = [], self._config.context_length
        for text in request.continuations:
            pair = self._tokenizer.raw.encode(request.context, text)
            tokens, kinds = list(pair.ids), list(pair.type_ids)
            own = [place for place, part in enumerate(pair.sequence_ids) if part == 1]
            over = max(0, len(tokens) - most)
            if over and (request.truncate == "error" or over >= len(own)):
                raise ContextLengthError(len(tokens), most, "continuations")
            dropped = own[:over] if request.truncate == "left" else own[len(own) - over :]
            for place in reversed(dropped):
                del tokens[place], kinds[place]
            depth, written = len(self._config.layers), len(own) - over
            job = Pairing(tokens, kinds, written, self._module.judge, depth, adapter, self._key(adapter))
            job.truncated = over
            jobs.append(job)
        return jobs

    def pooling(self, request: FeatureRequest, adapter: LoraAdapter | None) -> Pooling:
        """Raises RequestError for a layer that does not exist, an empty text or one that is too long."""
        depth = len(self._reader.layers)
        layers = [depth if layer == -1 else layer for layer in request.layers]
        if not layers or any(not 0 <= layer <= depth for layer in layers):
            raise RequestError(f"layers must be between -1 and {depth}, not {list(request.layers)}", "layers")
        if request.pooling not in get_args(PoolingKind):
            known = ", ".join(get_args(PoolingKind))
            raise RequestError(f"pooling must be one of {known}, not {request.pooling!r}", "pooling")
        whole = self._reader.both_ways
        text, pooling, limit = request.text, request.pooling, self._reader.context_length
        if pooling == "own":
            pooling, limit = self._embedding.pooling, min(limit, self._embedding.max_tokens or limit)
            prompts = {"query": self._embedding.query, "document": self._embedding.document}
            if isinstance(text, str):
                text = prompts.get(str(request.side), self._embedding.prompt) + text
                text = text.lower() if self._embedding.lower else text
        if request.max_tokens is not None:
            if request.max_tokens < 1:
                raise RequestError(f"max_tokens must be 1 or more, not {request.max_tokens}", "max_tokens")
            limit = min(limit, request.max_tokens)
        tokens = self._ids(text, "text")
        start = 0
        if isinstance(text, str) and request.start:
            ends = [end for _, end in self._tokenizer.offsets(text)]
            start = next((i for i, end in enumerate(ends) if end > request.start), len(ends))
        if start >= len(tokens):
            raise RequestError("text has no tokens to pool", "text")
        if request.truncate == "right":
            tokens, given = self._tokenizer.cut(tokens, limit), len(tokens)
            truncated, start = given - len(tokens), min(start, len(tokens) - 1)
        else:
            tokens, truncated = self._fit(tokens, limit, request.truncate, "text", most=limit)
            start = max(start - truncated, 0)
        first = len(tokens) - 1 if pooling == "last" else start
        pooled = range(first, first + 1 if pooling == "first" else len(tokens))
        job = Pooling(tokens, layers, pooled, pooling == "both", adapter, self._key(adapter), whole)
        job.truncated = truncated
        return job

    @property
    def _reader(self) -> ModelConfig:
        """The stack that reads texts."""
        return self._config.stacks[0]

    def _sides(
        self, prompt: list[int], room: int, truncate: str, field: str, adapter: LoraAdapter | None, extra: int = 0
    ) -> tuple[list[int], Source | None, int]:
        """What the decoder begins with, what an encoder reads first, and how many tokens were dropped.

        Args:
            room: tokens that the decoder needs behind it. extra: of these, how many belong to the request's own length.
        """
        if self._config.encoder is None:
            kept, truncated = self._fit(prompt, max(self._config.context_length - room, 1), truncate, field, extra)
            return kept, None, truncated
        most = self._config.encoder.context_length
        kept, truncated = self._fit(prompt, most, truncate, field, most=most)
        return [self._config.start_token], Source.of(kept, self._key(adapter)), truncated

    def _needs_decoder(self, what: str) -> None:
        if self._config.both_ways:
            raise RequestError(
                f"this base is an encoder ({self._config.family}): it cannot {what}, only embed", "model"
            )

    def _key(self, adapter: LoraAdapter | None) -> bytes:
        return self._root if adapter is None else self._root + adapter.digest

    def _ids(self, source: str | Sequence[int], field: str) -> list[int]:
        if isinstance(source, str):
            return self._tokenizer.encode(source)
        ids = list(source)
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self._config.vocab_size for i in ids):
            raise RequestError(f"{field} has a token id outside 0..{self._config.vocab_size - 1}", field)
        return ids

    def _continuations(self, request: ScoreRequest, context: list[int]) -> list[list[int]]:
        texts = [c for c in request.continuations if isinstance(c, str)]
        if isinstance(request.context, str):
            found = iter(self._tokenizer.encode_continuations(request.context, context, texts))
        else:
            found = iter(self._tokenizer.encode_batch(texts, add_special=False))
        continuations = [
            next(found) if isinstance(c, str) else self._ids(c, "continuations") for c in request.continuations
        ]
        if not all(continuations):
            raise RequestError("a continuation has no tokens", "continuations")
        return continuations

    def _fit(
        self, tokens: list[int], limit: int, truncate: str, field: str, extra: int = 0, most: int | None = None
    ) -> tuple[list[int], int]:
        if truncate not in ("error", "left"):
            raise RequestError(f"truncate must be 'error' or 'left', not {truncate!r}", "truncate")
        if len(tokens) <= limit:
            return tokens, 0
        if truncate == "error":
            raise ContextLengthError(len(tokens) + extra, most or self._config.context_length, field)
        # models learnt from texts that all begin with what the tokenizer puts there, and a vector may stand there
        head = self._tokenizer.head
        head = head if len(head) < limit and tokens[: len(head)] == head else []
        return [*head, *tokens[len(head) - limit :]], len(tokens) - limit


def _check_generation(r: GenerateRequest, vocab_size: int) -> None:
    if (r.prompt is None) == (r.messages is None):
        raise RequestError("give exactly one of prompt and messages", "prompt")
    rules: list[tuple[str, bool, str]] = [
        ("max_tokens", r.max_tokens >= 0, "0 or more"),
        ("temperature", 0 <= r.temperature <= 100, "between 0 and 100"),
        ("top_k", r.top_k >= 0, "0 (all) or more"),
        ("top_p", 0 < r.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= r.min_p <= 1, "between 0 and 1"),
        ("repetition_penalty", 0 < r.repetition_penalty <= 100, "above 0 and at most 100"),
        ("presence_penalty", -100 <= r.presence_penalty <= 100, "between -100 and 100"),
        ("frequency_penalty", -100 <= r.frequency_penalty <= 100, "between -100 and 100"),
        ("n", 1 <= r.n <= MAX_SAMPLES, f"between 1 and {MAX_SAMPLES}"),
        ("logprobs", r.logprobs is None or 0 <= r.logprobs <= vocab_size, "None, 0 or more"),
        ("prompt_logprobs", r.prompt_logprobs is None or 0 <= r.prompt_logprobs <= vocab_size, "None, 0 or more"),
    ]
    for field, fine, rule in rules:
        if not fine:
            raise RequestError(f"{field} must be {rule}, not {getattr(r, field)!r}", field)
    if sum(x is not None for x in (r.schema, r.regex, r.choices)) > 1:
        raise RequestError("give at most one of schema, regex and choices", "schema")
