"""Packing and the stream: nothing lost, nothing cut that fits, any place in it is a place to go on from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.errors import PandoError
from pando.train.batch import PADDING, Batch
from pando.train.example import IGNORE, Example
from pando.train.objectives import make_mixture
from pando.train.packing import Packer
from pando.train.shards import Shards, open_shards
from pando.train.stream import Stream, whole_batches
from tests.train import corpus

T = 64


def drained(packer: Packer) -> list[list[tuple[int, int, int]]]:
    rows = []
    while len(packer):
        rows.append([(piece.key[0], piece.start, piece.stop) for piece in packer.row()])
    return rows


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80), st.integers(0, 99))
def test_every_token_is_in_one_row_and_what_fits_is_whole(lengths: list[int], seed: int) -> None:
    packer = Packer(T, seed)
    for i, n in enumerate(lengths):
        tokens = np.arange(n, dtype=np.int32)
        packer.add(Example(tokens, tokens, cuttable=n > T), (i,))
    rows = drained(packer)
    found: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        assert sum(stop - start for _, start, stop in row) <= T
        for document, start, stop in row:
            found.setdefault(document, []).append((start, stop))
    for i, n in enumerate(lengths):
        pieces = sorted(found[i])
        assert n > T or pieces == [(0, n)]
        assert [start for start, _ in pieces] + [n] == [0] + [stop for _, stop in pieces]


def test_examples_that_cannot_be_packed_are_refused() -> None:
    packer = Packer(8, 0)
    for size in (0, 9):
        with pytest.raises(ValueError, match="cannot be cut"):
            packer.add(Example(np.zeros(size, np.int32), np.zeros(size, np.int32)), (0,))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Documents whose tokens tell which document and which place they are of; some are longer than a row."""
    draw = np.random.default_rng(0)
    lengths = np.where(draw.random(400) < 0.1, draw.integers(T, 5 * T, 400), draw.integers(1, T, 400))
    documents = [[*draw.integers(1, 350, n - 1).tolist(), 0] for n in lengths]
    folder = tmp_path_factory.mktemp("shards")
    return open_shards(corpus.write_shards(folder, documents, per_shard=150, names=("a", "b")))


def stream(shards: Shards, rows: int = 4, seed: int = 1, **objectives: float) -> Stream:
    return Stream(shards, make_mixture(objectives or {"causal": 1.0}, shards), T, rows, seed)


def documents_of(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """Tokens and targets of every piece."""
    found = []
    for batch in batches:
        for tokens, targets, numbers in zip(batch.tokens, batch.targets, batch.documents, strict=True):
            for number in numbers.unique().tolist():
                here = numbers == number
                if number != PADDING:
                    found.append((tokens[here].tolist(), targets[here].tolist()))
    return found


def test_every_token_of_a_split_is_a_target_once_and_comes_after_the_one_before_it(shards: Shards) -> None:
    documents = shards.documents("validation")
    batches = list(whole_batches(documents, make_mixture({"causal": 1.0}, shards), T, 4, shards.end))
    wanted = {(a, b) for d in documents for a, b in zip([0, *d.tokens.tolist()], d.tokens.tolist(), strict=False)}
    pieces = documents_of(batches)
    assert {pair for tokens, targets in pieces for pair in zip(tokens, targets, strict=True)} == wanted
    targets = Counter(t for _, targets in pieces for t in targets)
    assert targets == Counter(t for d in documents for t in d.tokens.tolist())
    whole = [d.tokens.tolist() for d in documents if len(d.tokens) <= T]
    assert all(any(t == one for _, t in pieces) for one in whole)
    assert sum(batch.weight for batch in batches) == documents.tokens


def test_batches_are_laid_out_as_they_say(shards: Shards) -> None:
    for batch in (next(stream(shards)), next(stream(shards)).rows(slice(1, 3))):
        assert batch.tokens.shape == batch.prefix.shape == (len(batch.tokens), T) and not batch.prefix.any()
        assert batch.names == ("causal",) and not batch.objective.any()
        assert batch.weight == (batch.targets != IGNORE).sum() == batch.used
        assert (batch.targets.flatten()[batch.places] != IGNORE).all()
        for numbers, positions in zip(batch.documents, batch.positions, strict=True):
            for number in numbers.unique():
                assert positions[numbers == number].tolist() == list(range(int((numbers == number).sum())))


def test_each_epoch_reads_every_document_once(shards: Shards) -> None:
    one = stream(shards, rows=8)
    seen: Counter[tuple[int, ...]] = Counter()
    while one.epoch < 4:
        seen.update(tuple(targets) for _, targets in documents_of([next(one)]))
    seen.update(tuple(piece.example.targets) for piece in one._packer._pool)
    short = [tuple(d.tokens.tolist()) for d in shards.documents("train") if 20 < len(d.tokens) <= T]
    assert {seen[document] for document in short} <= {4, 5}  # the fifth epoch has begun


MIXED = {"causal": 1.0, "masked": 1.0, "span": 1.0, "fim": 1.0}


@pytest.mark.parametrize("objectives", [{"causal": 1.0}, MIXED], ids=["causal", "mixed"])
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_stream_goes_on_from_its_state_to_the_same_batches_whatever_the_rows(
    shards: Shards, steps: int, objectives: dict[str, float]
) -> None:
    one = stream(shards, rows=4, **objectives)
    for _ in range(steps):
        next(one)
    state = json.loads(json.dumps(one.state_dict()))
    again = stream(shards, rows=8, **objectives)
    again.load_state_dict(state)
    for _ in range(4):
        halves, whole = [next(one), next(one)], next(again)
        for i, half in enumerate(halves):
            part = whole.rows(slice(4 * i, 4 * i + 4))
            for name in ("tokens", "targets", "documents", "positions", "prefix", "objective", "places"):
                assert getattr(part, name).equal(getattr(half, name)), name
    assert again.state_dict() == one.state_dict()


def test_seed_decides(shards: Shards) -> None:
    a, b, c = (next(stream(shards, seed=seed)).tokens for seed in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)


def test_state_of_another_run_is_refused(shards: Shards, tmp_path: Path) -> None:
    state = stream(shards).state_dict()
    for other, named in (
        (Stream(shards, make_mixture({"causal": 1.0}, shards), 32, 4, 1), "sequence length"),
        (stream(shards, seed=2), "seed"),
        (stream(open_shards(corpus.write_texts(tmp_path, ["a"], validation=[]))), "corpus"),
    ):
        with pytest.raises(PandoError, match=f"the {named} has changed"):
            other.load_state_dict(state)


def test_nothing_to_train_on_is_one_line(tmp_path: Path) -> None:
    empty = open_shards(corpus.write_texts(tmp_path, ["a"], validation=[0]))
    with pytest.raises(PandoError, match="nothing to train on"):
        stream(empty)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "name at least one"),
        ({"casual": 1.0}, "'casual' is unknown; there are causal"),
        ({"causal": 0}, "weight is 0"),
        ({"causal": {"weight": 1, "rate": 2}}, "no option 'rate'"),
        ({"causal": {"sources": ["c"]}}, r"sources \['c'\] are none of the corpus; there are a, b"),
    ],
)
def test_mistakes_in_a_mixture_are_named(shards: Shards, settings: dict, named: str) -> None:
    with pytest.raises(PandoError, match=named):
        make_mixture(settings, shards)


def test_source_that_no_objective_takes_is_named(shards: Shards) -> None:
    with pytest.raises(PandoError, match="objectives: none takes the source b"):
        next(Stream(shards, make_mixture({"causal": {"sources": ["a"]}}, shards), T, 4, 0))
