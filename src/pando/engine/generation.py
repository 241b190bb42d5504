"""One generated sample: its tokens one after the other, its text as it becomes certain, its end."""

from __future__ import annotations

import time

from pando.engine.batch import Row
from pando.engine.cache import BLOCK
from pando.engine.grammar import Grammar
from pando.engine.jobs import Job, Logits, Source
from pando.engine.sampler import Sampler, token_logprob
from pando.interface import Chunk, Completion, FinishReason, GenerateRequest, TokenLogprob, Usage
from pando.model.lora import LoraAdapter
from pando.model.tokenizer import Detokenizer, Tokenizer

_AHEAD = 256  # tokens that places are kept for; few answers are as long as they may be


class Generation(Job):
    """One sample of a generate request."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: list[int],
        sampler: Sampler,
        grammar: Grammar | None,
        tokenizer: Tokenizer,
        adapter: LoraAdapter | None,
        root: bytes,
        source: Source | None = None,
    ) -> None:
        echo = request.prompt_logprobs is not None
        super().__init__(list(prompt), 0 if echo else len(prompt) - 1, adapter, root, source=source)
        self.request = request
        self.sampler = sampler
        self.grammar = grammar
        self.stops = [s for s in ([request.stop] if isinstance(request.stop, str) else request.stop) if s]
        ends = set(request.stop_token_ids)
        self.ends = ends if request.ignore_eos else ends | tokenizer.eos_ids
        self.eos = tokenizer.eos_ids
        self.detokenizer = Detokenizer(tokenizer)
        self.text = ""
        self.sent = 0
        self.reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if echo else None
        self.chunks: list[Chunk] = []
        self.limit = request.max_tokens  # lowered where the context ends first

    @property
    def room(self) -> int:
        return self.given + self.limit

    @property
    def reserve(self) -> int:
        return min(self.room, len(self.tokens) + _AHEAD)

    @property
    def finished(self) -> bool:
        return self.reason is not None

    def put_back(self) -> None:
        """Gives its places to others; it goes on from what it has made, which is found again unless they needed it."""
        assert self.lease is not None
        self.digests = self.chain()
        self.lease.publish(self.digests[: self.computed // BLOCK])
        self.release()
        self.lease = None
        if self.source is not None:
            self.source.lease = None
        self.computed, self.reusable = 0, len(self.tokens) - 1
        if self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.given:
            self.prompt_logprobs, self.reusable = [None], 0  # the prompt is read anew

    @property
    def decoding(self) -> bool:
        """Whether the next row is a single new token."""
        return self.computed >= self.given

    def next_row(self, budget: int) -> Row:
        row = super().next_row(budget)
        if self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.given and not self.decoding:
            row.want = list(range(len(row.tokens)))
        elif row.past + len(row.tokens) == len(self.tokens):
            row.want = [len(row.tokens) - 1]
        return row

    def take(self, row: Row, at: int, found: Logits) -> None:
        for i, offset in enumerate(row.want[at : at + len(found.best)]):
            place = row.past + offset
            if place + 1 < self.given:
                assert self.prompt_logprobs is not None
                token, alternatives = self.tokens[place + 1], self.request.prompt_logprobs or 0
                self.prompt_logprobs.append(token_logprob(found.logits[i], float(found.total[i]), token, alternatives))
            elif self.limit == 0:
                self.reason = "length"
            else:
                self._sample(found, i)

    def _sample(self, found: Logits, i: int) -> None:
        if self.grammar is None and self.sampler.plain:
            token = int(found.best[i])
        else:
            allowed = None if self.grammar is None else self.grammar.allowed().to(found.logits.device)
            token = self.sampler.choose(found.logits[i], len(self.tokens) - self.given, allowed)
        if self.logprobs is not None:
            alternatives = self.request.logprobs or 0
            self.logprobs.append(token_logprob(found.logits[i], float(found.total[i]), token, alternatives))
        self._append(token)

    def _append(self, token: int) -> None:
        self.first = self.first or time.perf_counter()
        self.tokens.append(token)
        self.sampler.counts[token] += 1
        generated = len(self.tokens) - self.given
        if token in self.ends:
            self.text += self.detokenizer.finish()
            self.reason = "stop"
        else:
            self.text += self.detokenizer.add([token])
            if self.grammar is not None:
                self.grammar.advance(token)
                if self.grammar.finished:
                    self.reason = "stop"
            if self.reason is None and generated >= self.limit:
                self.reason = "length"
            if self.reason is not None:
                self.text += self.detokenizer.finish()
        self._cut_at_stop()
        self._emit(token)

    def _cut_at_stop(self) -> None:
        places = [at for stop in self.stops if (at := self.text.find(stop, max(0, self.sent - len(stop)))) >= 0]
        if places:
            self.text = self.text[: min(places)]
            self.reason = "stop"

    def _emit(self, token: int) -> None:
        """Queues the text that no stop string can take back any more."""
        end = len(self.text)
        if self.reason is None:
            end -= max((_overlap(self.text, stop) for stop in self.stops), default=0)
        logprobs = None if self.logprobs is None else self.logprobs[-1:]
        self.chunks.append(Chunk(self.sampler.index, self.text[self.sent : max(end, self.sent)], [token], logprobs))
        self.sent = max(end, self.sent)

    def gathered(self, answers: list[Completion]) -> list[Completion]:
        """All samples."""
        return answers

    def result(self) -> Completion:
        """The finished sample."""
        return Completion(
            text=self.text,
            tokens=self.tokens[self.given :],
            finish_reason=self.reason or "abort",
            usage=Usage(len(self.shown), self.cached, len(self.tokens) - self.given, self.truncated),
            latency=self.latency(),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            prompt_tokens=self.shown,
            index=self.sampler.index,
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
