"""Embed and hybrid (retrieve): documents by vectors of the base, and by vectors and words together.

A sentence encoder makes vectors as its own files say. Of any other base, some layers' mean states are tried, centred by
the corpus's mean (which takes off what all of them share, arXiv 1702.01417), and the best on select rows is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from pando.adapt.rungs.common import draft, kept
from pando.adapt.rungs.tokens import query_tokens
from pando.files import content_hash
from pando.interface import Capabilities, FeatureRequest, Features
from pando.skin import Skin
from pando.skin.methods import search_request
from pando.skin.parts import Reading
from pando.skin.search import Bm25, DocumentIndex, Searching, unit
from pando.task.file import Task

if TYPE_CHECKING:
    from pando.adapt.lab import Lab
    from pando.engine import Engine

DEPTHS = (1.0, 3 / 4, 1 / 2)  # layers that are tried, as shares of the depth
TOKENS = 256  # of a document that are read, unless the base's own files say otherwise
SHARES = tuple(i / 10 for i in range(11))  # of vectors in a hybrid
_BATCH = 64  # documents whose vectors are computed and kept together


class Embed:
    """See `Rung`."""

    name = "embed"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if task.kind != "retrieve":
            return "there are no documents to search"
        return None if capabilities.features else "this model does not show its hidden states"

    def cost(self, task: Task, lab: Lab) -> float:
        """The corpus is read once."""
        return float(TOKENS * len(lab.documents.ids))

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """One skin: the layer whose vectors find select rows' documents best."""
        bare, centred = own_way(task, lab, self.name)
        assert bare.reading is not None
        every = document_vectors(bare, lab)
        drafts = []
        for i, layer in enumerate(bare.reading.layers):
            vectors = every[:, i]
            mean = vectors.mean(axis=0) if centred else None
            documents = DocumentIndex(lab.documents.ids, None, unit(vectors, mean), mean)
            drafts.append(replace(bare, reading=replace(bare.reading, layers=(layer,)), documents=documents))
        if len(drafts) == 1:
            return drafts
        return [max(drafts, key=lambda skin: lab.evaluate(skin).quality)]


class Hybrid:
    """See `Rung`."""

    name = "hybrid"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        return Embed().fits(task, capabilities)

    def cost(self, task: Task, lab: Lab) -> float:
        """What embedding costs, and select rows for each share."""
        return Embed().cost(task, lab) + len(SHARES) * len(lab.select) * query_tokens(lab)

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """One skin: the share of vectors that finds select rows' documents best; of equal ones the most even."""
        (found,) = Embed().propose(task, lab)
        assert found.documents is not None and found.searching is not None
        words = Bm25.fit(lab.documents.texts)
        drafts = [
            replace(
                found,
                rung=self.name,
                documents=replace(found.documents, words=words),
                searching=replace(found.searching, share=share),
            )
            for share in SHARES
        ]
        with lab.progress(len(drafts), "hybrid: shares") as advance:
            worth = []
            for share, skin in zip(SHARES, drafts, strict=True):
                worth.append((lab.evaluate(skin).quality, -abs(share - 0.5)))
                advance(1)
        return [drafts[worth.index(max(worth))]]


def own_way(task: Task, lab: Lab, rung: str) -> tuple[Skin, bool]:
    """A skin that reads every layer that is tried, and whether its vectors are to be centred."""
    engine = cast("Engine", lab.model)
    own, depth = engine.base.embedding, engine.capabilities.layers
    tried = (depth,) if own.known else tuple(sorted({max(1, round(depth * share)) for share in DEPTHS}))
    most = min(own.max_tokens or TOKENS, engine.base.config.stacks[0].context_length)
    searching = Searching(
        1.0, query_prompt=own.query, document_prompt=own.document, max_tokens=most, lower=own.known and own.lower
    )
    return draft(task, lab, rung, reading=Reading(tried, own.pooling), searching=searching), not own.known


def document_vectors(skin: Skin, lab: Lab) -> np.ndarray:
    """What the skin reads of each document, float32 [documents, layers, d]; kept, for a run that goes on."""
    texts, parts, reading = lab.documents.texts, [], skin.reading
    assert reading is not None and skin.searching is not None
    digest = None if skin.adapter is None else content_hash(skin.adapter / "adapter_model.safetensors")
    how = [asdict(reading), asdict(skin.searching), digest]
    folder = lab.workdir("embed") / content_hash(how)[7:19]
    folder.mkdir(parents=True, exist_ok=True)
    with lab.progress(len(texts), f"{skin.rung}: reading documents") as advance:
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            requests = [search_request(skin, text, "document") for text in part]
            parts.append(kept(folder / f"{start}.npy", lab, len(reading.layers), partial(_answers, lab, requests)))
            advance(len(part))
    return np.concatenate(parts)


def _answers(lab: Lab, requests: Sequence[FeatureRequest]) -> list[Features]:
    return cast("list[Features]", [handle.result() for handle in [lab.model.submit(one) for one in requests]])
