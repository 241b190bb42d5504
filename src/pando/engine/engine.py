"""The engine: one loaded base, one thread that owns it, requests submitted from any thread.

Each step takes the next token of every answer under way and as many tokens of waiting prompts as the step's budget
holds, runs them through the model as one packed batch, and hands out what they were computed for (continuous
batching, Orca, OSDI 2022; mixed prefill and decode as in Sarathi-Serve, arXiv 2403.02310).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pando.engine.adapters import AdapterCache
from pando.engine.batch import Row, StepContext, mix_adapters
from pando.engine.cache import BLOCK, KVCache
from pando.engine.jobs import Job, Logits
from pando.engine.readings import Pooling, Scoring
from pando.engine.requests import RequestCompiler
from pando.engine.scheduler import Scheduler
from pando.engine.ticket import Ticket
from pando.errors import PandoError, RequestError
from pando.interface import (
    Capabilities,
    Completion,
    FeatureRequest,
    Features,
    GenerateRequest,
    Identity,
    Message,
    Request,
    ScoreRequest,
    Scores,
)
from pando.model.base import BaseModel
from pando.model.config import ModelConfig
from pando.model.context import PackedContext
from pando.model.spelling import Spelling
from pando.model.transformer import Block, Transformer

if TYPE_CHECKING:
    import numpy as np

_HEAD_ROWS = 256  # most rows of logits at once: 256 x 49k float32 are 50 MB


class Engine:
    """A base model at work: a `LanguageModel`.

    Args:
        base: configuration, tokenizer and identity.
        module: the transformer with its weights, on its device.
        device, dtype: where and in which numbers it computes; `dtype` is the name that answers for it ("int8" has
            bfloat16 activations).
        cache_tokens: most tokens held in the cache.
        skin: folder whose adapter requests without a skin of their own get; None leaves them the bare base.
    """

    def __init__(
        self,
        base: BaseModel,
        module: Transformer,
        device: torch.device,
        dtype: str,
        cache_tokens: int,
        skin: str | None = None,
    ) -> None:
        self.base = base
        self.module = module
        self.device = device
        self.skin = skin
        self._dtype = dtype
        self._number = torch.float32 if dtype == "float32" else torch.bfloat16
        budget = 8192 if device.type == "cuda" else 1024
        self._cache, self._sources = _caches(base.config, cache_tokens, budget, device, self._number)
        self._scheduler = Scheduler(self._cache, self._sources, budget)
        self._compiler = RequestCompiler(base, module)
        self._spelling = Spelling(base.tokenizer.raw)
        self._adapters = AdapterCache(module, device, self._number)
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # nothing is queued once it is closed
        self._closed = False
        self.busy_seconds = 0.0
        self._thread = threading.Thread(target=self._loop, name="pando-engine", daemon=True)
        self._thread.start()

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self.base.identity

    @property
    def capabilities(self) -> Capabilities:
        config, tokenizer = self.base.config, self.base.tokenizer
        writes, blank = not config.both_ways, None
        if not config.causal:
            blank = tokenizer.sentinel if writes else tokenizer.mask if config.predicts else None
        return Capabilities(
            generate=writes,
            score=writes or blank is not None,
            features=True,
            embed=True,
            adapters=True,
            grammar=writes,
            chat=writes and tokenizer.has_template,
            train=self._dtype != "int8",
            pairs=config.judges,
            demonstrations=config.causal,
            blank=blank,
            layers=len(config.stacks[0].layers),
        )

    @property
    def context_length(self) -> int:
        return self.base.config.context_length

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def load(self) -> dict[str, int]:
        """Requests under way and waiting, and cache blocks in use and in all (of layers that look all the way back)."""
        pool, (running, waiting) = self._cache.pools[None], self._scheduler.counts
        return {
            "running": running,
            "waiting": waiting,
            "blocks_used": pool.size - pool.available,
            "blocks": pool.size,
        }

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special ones as the tokenizer adds them."""
        return len(self.base.tokenizer.encode(text))

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The UTF-8 bytes that each token stands for; special tokens are spelled by name."""
        return self._spelling(tokens)

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a chat by the base's own template (a plain format where it has none)."""
        return self.base.tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)

    # -- what it does -------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Checks and queues one request.

        Raises:
            RequestError: a field is wrong or the input too long; nothing was queued.
        """
        adapter = self._adapters.of(request.skin or self.skin)
        jobs: Sequence[Job]
        if isinstance(request, GenerateRequest):
            jobs = self._compiler.generation(request, adapter)
        elif isinstance(request, ScoreRequest):
            jobs = self._compiler.scoring(request, adapter)
        else:
            jobs = [self._compiler.pooling(request, adapter)]
        if not all(map(self._scheduler.fits, jobs)):
            there = self._cache.pools[None].size * BLOCK
            raise RequestError(f"the request needs {max(j.room for j in jobs)} tokens of cache and there are {there}")
        ticket = Ticket(request, jobs, lambda: self._inbox.put(None))
        with self._gate:
            if self._closed:
                raise PandoError("the model was closed")
            self._inbox.put(ticket)
        return ticket

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Answers in the order of the requests, one per sample."""
        return [completion for answer in self._all(requests) for completion in answer]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Log-probabilities of each request's continuations. Contexts that begin alike are computed once."""
        return self._all(requests)

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features]:
        """Pooled hidden states."""
        return self._all(requests)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, float32 [n, d_model], unit length: as the base's own files say where it is a sentence
        encoder (pooling, prompt, longest text), else the mean of each text's last hidden states."""
        import numpy as np

        found = self.features([FeatureRequest(text=text, pooling="own") for text in texts])
        if not found:
            return np.zeros((0, self.base.config.d_model), dtype=np.float32)
        vectors = np.stack([f.vectors[0] for f in found])
        return cast("np.ndarray", vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))

    def close(self) -> None:
        """Ends the thread; requests under way and waiting fail with PandoError."""
        with self._gate:
            self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, requests: Sequence[Request]) -> list[Any]:
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.submit(request))
            return [ticket.result() for ticket in tickets]
        except BaseException:
            for ticket in tickets:
                ticket.abort()
            raise

    # -- the thread ---------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closed:
            self._receive(block=self._scheduler.idle)
            try:
                with torch.inference_mode():
                    self._step()
            except Exception as error:  # a bug or the device's memory: every caller is told, the thread lives on
                self._scheduler.fail(error)
        self._receive(block=False)
        self._scheduler.fail(PandoError("the model was closed"))

    def _receive(self, block: bool) -> None:
        while True:
            try:
                ticket = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if ticket is not None:
                self._scheduler.add(ticket.jobs, ticket)

    def _step(self) -> None:
        rows = self._scheduler.rows()
        if not rows:
            if not self._scheduler.idle:  # nothing runs that could make room
                self._scheduler.fail(RuntimeError("the cache has no room left for what waits"))
            return
        started = time.perf_counter()
        rows.sort(key=lambda row: not row.job.whole)
        whole = [row for row in rows if row.job.whole]
        rest = rows[len(whole) :]
        hidden = [*self._read(whole, rest), *self._continue(rest)]
        self._hand_out(rows, torch.cat(hidden))
        seconds = time.perf_counter() - started
        self.busy_seconds += seconds
        tokens = sum(row.work for row in rows)
        for row in rows:
            row.job.compute += seconds * row.work / tokens
            if row.job.source is not None:
                row.job.source.read = True
        self._scheduler.settle()

    def _read(self, whole: Sequence[Row], rest: Sequence[Row]) -> Iterator[Tensor]:
        """One pass of the encoder over texts that jobs are about (`whole`), and over inputs of the `rest` that nobody
        has read yet: hidden states [wanted tokens, d_model] of the former; keys and values of the latter are kept."""
        fresh = [(row.job, source) for row in rest if (source := row.job.source) is not None and not source.read]
        texts = [(row.job, row.tokens) for row in whole] + [(job, source.tokens) for job, source in fresh]
        if not texts:
            return
        ctx = PackedContext(
            [len(text) for _, text in texts],
            self.device,
            both_ways=True,
            adapters=mix_adapters(((job.adapter, len(text)) for job, text in texts), self.device),
            observe=_observer(whole),
        )
        tokens = torch.tensor([token for _, text in texts for token in text], device=self.device)
        if any(job.kinds for job, _ in texts):
            kinds = [kind for job, text in texts for kind in job.kinds or [0] * len(text)]
            ctx.kinds = torch.tensor(kinds, device=self.device)
        module = self.module
        hidden = module(tokens, ctx) if module.encoder is None else module.encode(tokens, ctx)
        yield hidden[_wanted(whole, self.device)]
        if not fresh:
            return
        assert self._sources is not None
        slots = [slot for _, source in fresh for slot in source.places()]
        placed, first = torch.tensor(slots, device=self.device), len(tokens) - len(slots)
        for layer, block in enumerate(module.layers):
            assert isinstance(block, Block) and block.cross is not None
            keys, values = block.cross.remember(hidden, ctx)
            self._sources.write(layer, placed, keys[first:], values[first:])
        for _, source in fresh:
            source.publish()

    def _continue(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """One packed pass over rows that have a past: hidden states [wanted tokens, d_model]."""
        if not rows:
            return
        for row in rows:
            assert row.job.lease is not None
            row.job.lease.extend(row.end)
        ctx = StepContext(rows, self._cache, self.device, self._number, _observer(rows), self._sources)
        tokens = torch.tensor([token for row in rows for token in row.tokens], device=self.device)
        yield self.module(tokens, ctx)[_wanted(rows, self.device)]

    def _hand_out(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Publishes full blocks, then gives each job the logits that it wanted, a bounded number at a time."""
        for row in rows:
            job = row.job
            job.advance(row)
            if job.lease is not None:
                job.lease.publish(job.digests[: job.computed // BLOCK])
        pieces: list[tuple[Row, int, int]] = []
        for row in rows:
            for at in range(0, len(row.want), _HEAD_ROWS):
                pieces.append((row, at, min(_HEAD_ROWS, len(row.want) - at)))
        place = 0
        while pieces:
            batch, size = [], 0
            while pieces and size + pieces[0][2] <= _HEAD_ROWS:
                batch.append(pieces.pop(0))
                size += batch[-1][2]
            logits = self.module.head(hidden[place : place + size]).float()
            best, total = logits.argmax(-1), logits.logsumexp(-1)
            place += size
            at = 0
            for row, first, count in batch:
                part = slice(at, at + count)
                try:
                    row.job.take(row, first, Logits(logits[part], best[part], total[part]))
                except RequestError as error:  # this answer cannot be given; the others can
                    row.job.error = error
                at += count


def _caches(
    config: ModelConfig, tokens: int, budget: int, device: torch.device, number: torch.dtype
) -> tuple[KVCache, KVCache | None]:
    """For at least one whole context: of a decoder's own tokens, and of what an encoder reads for it, if there is one.
    An encoder alone keeps nothing."""
    blocks = -(-max(tokens, config.context_length) // BLOCK) + 1
    longest = max(budget, Scoring.LIMIT) + Scoring.LIMIT
    own = [] if config.both_ways else [layer.attention for layer in config.layers]
    cache = KVCache(own, config.context_length, blocks, longest, device, number)
    if config.encoder is None:
        return cache, None
    most = config.encoder.context_length
    blocks = -(-max(tokens, most) // BLOCK) + 1
    crossed = [layer.cross for layer in config.layers if layer.cross is not None]
    return cache, KVCache(crossed, most, blocks, most, device, number)


def _observer(rows: Sequence[Row]) -> Callable[[int, Tensor], None] | None:
    """Shows hidden states to the jobs that pool them; None where there are none."""
    pooling = [(row.job, row, start) for row, start in _with_starts(rows) if isinstance(row.job, Pooling)]

    def observe(layer: int, hidden: Tensor) -> None:
        for job, row, start in pooling:
            if layer in job.layers:
                job.observe(layer, row, hidden[start : start + len(row.tokens)])

    return observe if pooling else None


def _wanted(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Places of the tokens that need logits."""
    want = [start + offset for row, start in _with_starts(rows) for offset in row.want]
    return torch.tensor(want, dtype=torch.long, device=device)


def _with_starts(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    start = 0
    for row in rows:
        yield row, start
        start += len(row.tokens)
