"""The engine: one loaded base, one thread that owns it, requests submitted from any thread.

Each step takes the next token of every answer under way and as many tokens of waiting prompts as the step's budget
holds, runs them through the model as one packed batch, and hands out what they were computed for (continuous
batching, Orca, OSDI 2022; mixed prefill and decode as in Sarathi-Serve, arXiv 2403.02310).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pando.engine.batch import Row, StepContext
from pando.engine.cache import BLOCK, KVCache, Lease
from pando.engine.jobs import Generation, Job, Logits, Pooling, Scoring
from pando.engine.requests import RequestCompiler
from pando.engine.ticket import Ticket
from pando.errors import PandoError, RequestError
from pando.interface import (
    Capabilities,
    Chunk,
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
from pando.model.lora import LoraAdapter
from pando.model.peft import has_adapter, load_peft
from pando.model.spelling import Spelling
from pando.model.transformer import Transformer

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
        blocks = -(-max(cache_tokens, base.config.context_length) // BLOCK) + 1
        self._budget = 8192 if device.type == "cuda" else 1024
        longest = max(self._budget, Scoring.LIMIT) + Scoring.LIMIT
        self._cache = KVCache(base.config, blocks, longest, device, self._number)
        self._compiler = RequestCompiler(base.config, base.tokenizer, base.embedding, base.identity.hash.encode())
        self._spelling = Spelling(base.tokenizer.raw)
        self._adapters: dict[str, tuple[int, LoraAdapter | None]] = {}
        self._adapter_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._waiting: deque[tuple[Job, Ticket]] = deque()
        self._running: list[tuple[Job, Ticket]] = []
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
        decoder = not self.base.config.both_ways
        return Capabilities(
            generate=decoder,
            score=decoder,
            features=True,
            embed=True,
            adapters=True,
            grammar=decoder,
            chat=decoder and self.base.tokenizer.has_template,
            train=decoder and self._dtype != "int8",
            layers=len(self.base.config.layers),
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
        pool = self._cache.pools[None]
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
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
        adapter = self._adapter(request.skin or self.skin)
        jobs: Sequence[Job]
        if isinstance(request, GenerateRequest):
            jobs = self._compiler.generation(request, adapter)
        elif isinstance(request, ScoreRequest):
            jobs = [self._compiler.scoring(request, adapter)]
        else:
            jobs = [self._compiler.pooling(request, adapter)]
        room = max(job.room for job in jobs)
        if any(self._cache.most(window, room) > pool.size for window, pool in self._cache.pools.items()):
            there = self._cache.pools[None].size * BLOCK
            raise RequestError(f"the request needs {room} tokens of cache and there are {there}")
        if self._closed:
            raise PandoError("the model was closed")
        ticket = Ticket(request, jobs, lambda: self._inbox.put(None))
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
        """Ends the thread; requests under way are aborted."""
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

    def _adapter(self, skin: str | None) -> LoraAdapter | None:
        """The adapter in a skin's folder, or None if the skin has none; kept until its files change."""
        if skin is None:
            return None
        folder = Path(skin)
        if not folder.is_dir():
            raise RequestError(f"skin {skin!r} is no folder; name a skin's or a PEFT adapter's folder", "skin")
        if not has_adapter(folder):
            if (folder / "skin.yaml").exists():
                return None
            raise RequestError(f"{skin} holds neither a skin nor a PEFT adapter", "skin")
        stamp = max(path.stat().st_mtime_ns for path in folder.glob("adapter_*"))
        with self._adapter_lock:
            known = self._adapters.get(skin)
            if known is None or known[0] != stamp:
                known = (stamp, load_peft(folder, self.module, self.device, self._number))
                self._adapters[skin] = known
        return known[1]

    # -- the thread ---------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closed:
            self._receive(block=not self._waiting and not self._running)
            try:
                with torch.inference_mode():
                    self._step()
            except Exception as error:  # a bug or the device's memory: every caller is told, the thread lives on
                self._fail(error)
        self._fail(PandoError("the model was closed"))

    def _receive(self, block: bool) -> None:
        while True:
            try:
                ticket = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if ticket is not None:
                self._waiting.extend((job, ticket) for job in ticket.jobs)
            if self._closed:
                return

    def _step(self) -> None:
        self._drop_aborted()
        rows = self._schedule()
        if not rows:
            return
        started = time.perf_counter()
        hidden = self._forward(rows)
        self._hand_out(rows, hidden)
        seconds = time.perf_counter() - started
        self.busy_seconds += seconds
        tokens = sum(len(row.tokens) for row in rows)
        for row in rows:
            row.job.compute += seconds * len(row.tokens) / tokens
        self._settle()

    def _schedule(self) -> list[Row]:
        """Rows of the next step: the running jobs first, then as many waiting ones as budget and cache hold."""
        decoding = [job for job, _ in self._running if isinstance(job, Generation) and job.decoding]
        rows = [job.next_row(1) for job in decoding]
        # A long prompt must not hold up answers under way for long.
        budget = self._budget // 4 if decoding else self._budget
        busy = set(map(id, decoding))
        for job, _ in self._running:
            if id(job) not in busy and budget > 0:
                rows.append(job.next_row(budget))
                budget -= len(rows[-1].tokens)
        pending = {digest for job, _ in self._running for digest in job.digests[job.computed // BLOCK :]}
        while self._waiting and budget > 0:
            row = self._admit(budget, pending)
            if row is None:
                break
            rows.append(row)
            budget -= len(row.tokens)
        return rows

    def _admit(self, budget: int, pending: set[bytes]) -> Row | None:
        """Moves the first waiting job that can start to the running ones. A job whose beginning is being computed by
        another one right now (`pending`) waits for it, so that a shared context is computed once.
        """
        for place, (job, ticket) in enumerate(self._waiting):
            chain = job.digests[: job.reusable // BLOCK]
            known = self._cache.known(chain)
            if known < len(chain) and chain[known] in pending:
                continue
            job.lease = self._cache.admit(chain, job.room)
            if job.lease is None:
                return None
            job.computed = job.cached = known * BLOCK
            job.started = time.perf_counter()
            del self._waiting[place]
            self._running.append((job, ticket))
            pending.update(job.digests[known:])
            return job.next_row(budget)
        return None

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [wanted tokens, d_model] of one packed pass over the rows."""
        pooling = [(row, start) for row, start in _with_starts(rows) if isinstance(row.job, Pooling)]

        def observe(layer: int, hidden: Tensor) -> None:
            for row, start in pooling:
                job = cast(Pooling, row.job)
                if layer in job.layers:
                    job.observe(layer, row, hidden[start : start + len(row.tokens)])

        for row in rows:
            _lease(row.job).extend(row.end)
        ctx = StepContext(rows, self._cache, self.device, self._number, observe if pooling else None)
        tokens = torch.tensor([token for row in rows for token in row.tokens], device=self.device)
        hidden: Tensor = self.module(tokens, ctx)
        want = [start + offset for row, start in _with_starts(rows) for offset in row.want]
        return hidden[torch.tensor(want, dtype=torch.long, device=self.device)]

    def _hand_out(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Publishes full blocks, then gives each job the logits that it wanted, a bounded number at a time."""
        for row in rows:
            job = row.job
            job.advance(row)
            _lease(job).publish(job.digests[: job.computed // BLOCK])
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
                row.job.take(row, first, Logits(logits[part], best[part], total[part]))
                at += count

    def _settle(self) -> None:
        """Streams new text and finishes jobs that are done."""
        still = []
        for job, ticket in self._running:
            if isinstance(job, Generation):
                for chunk in job.chunks:
                    ticket.push(chunk)
                job.chunks.clear()
            if job.finished:
                _lease(job).publish(job.chain()[: job.computed // BLOCK])
                _lease(job).release()
                self._conclude(job, ticket)
            else:
                # a scoring's last token is computed again with each of its trees
                _lease(job).trim(min(job.computed, len(job.tokens) - 1))
                still.append((job, ticket))
        self._running = still

    def _conclude(self, job: Job, ticket: Ticket) -> None:
        job.answer = job.result()
        if isinstance(job, Generation):
            ticket.push(Chunk(job.sampler.index, "", completion=cast(Completion, job.answer)))
        if all(other.answer is not None for other in ticket.jobs):
            answers = [other.answer for other in ticket.jobs]
            ticket.finish(answers if isinstance(job, Generation) else answers[0])

    def _drop_aborted(self) -> None:
        for job, ticket in [pair for pair in self._running if pair[0].aborted]:
            self._running.remove((job, ticket))
            _lease(job).release()
            self._abandon(job, ticket)
        for job, ticket in [pair for pair in self._waiting if pair[0].aborted]:
            self._waiting.remove((job, ticket))
            self._abandon(job, ticket)

    def _abandon(self, job: Job, ticket: Ticket) -> None:
        if isinstance(job, Generation):
            self._conclude(job, ticket)
        else:
            ticket.finish(None, RequestError("the request was aborted"))

    def _fail(self, error: BaseException) -> None:
        for job, ticket in self._running:
            _lease(job).release()
            ticket.finish(None, error)
        for _, ticket in self._waiting:
            ticket.finish(None, error)
        self._running, self._waiting = [], deque()


def _lease(job: Job) -> Lease:
    """The places of a job that runs."""
    assert job.lease is not None
    return job.lease


def _with_starts(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    start = 0
    for row in rows:
        yield row, start
        start += len(row.tokens)
