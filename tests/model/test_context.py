"""Who sees whom: rows of documents, read both ways or one, on the path of CPUs and on the path of other devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pando.model.context import RowContext, _document_mask
from tests.model import tiny

T = 24
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9 + [-1] * 8, [0] * 24, [0] * 1 + [1] * 23])
PREFIX = torch.zeros(3, T, dtype=torch.bool)
PREFIX[0, 7:12] = PREFIX[1, :24] = PREFIX[2, 1:3] = True  # a prefix, a document read both ways, a prefix after another


def visible(documents: torch.Tensor, prefix: torch.Tensor | None, window: int = T) -> torch.Tensor:
    """bool [B, T, T], by definition."""
    found = torch.zeros(*documents.shape, T, dtype=torch.bool)
    for b, row in enumerate(documents.tolist()):
        for i in range(T):
            for j in range(T):
                both = prefix is not None and bool(prefix[b, j])
                found[b, i, j] = row[i] == row[j] and i - window < j < i + window and (j <= i or both)
    return found


@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_gradients_reach_what_is_visible_and_nothing_else(prefix: torch.Tensor | None) -> None:
    model = tiny.model(tiny.config(family="qwen3"))
    tokens = torch.arange(3 * T).view(3, T)
    vectors = model.embed(tokens).requires_grad_()
    hidden = model.run(vectors, RowContext(tokens, DOCUMENTS, prefix=prefix))
    wanted = visible(DOCUMENTS, prefix)
    for b in range(3):
        for i in (0, 3, 8, 11, 13, 23):
            gradient = torch.autograd.grad(hidden[b, i].sum(), vectors, retain_graph=True)[0].abs().sum(-1)
            assert torch.equal(gradient[b] > 0, wanted[b, i]), (b, i)
            assert not gradient[[r for r in range(3) if r != b]].any()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_document_by_document_is_the_masked_batch(prefix: torch.Tensor | None, window: int | None) -> None:
    """The mask that other devices use says the same as the parts that a CPU uses."""
    assert torch.equal(_document_mask(DOCUMENTS, prefix, window)[:, 0], visible(DOCUMENTS, prefix, window or T))
    shape = tiny.config()
    attention = replace(shape.layers[0].attention, window=window)
    model = tiny.model(replace(shape, layers=(replace(shape.layers[0], attention=attention),) * 2))
    tokens = torch.arange(3 * T).view(3, T)
    parts = RowContext(tokens, DOCUMENTS, prefix=prefix)
    masked = RowContext(tokens, DOCUMENTS, prefix=prefix)
    masked._parts, masked._documents, masked._prefix = None, DOCUMENTS, prefix
    assert parts._parts is not None
    assert (model(tokens, parts) - model(tokens, masked)).abs().max() < 1e-5


def test_positions_begin_anew_in_each_document_unless_given() -> None:
    tokens = torch.zeros(3, T, dtype=torch.int64)
    found = RowContext(tokens, DOCUMENTS).positions
    assert found[0].tolist() == [*range(7), *range(9), *range(8)] and found[1].tolist() == list(range(T))
    given = torch.arange(3 * T).view(3, T)
    assert torch.equal(RowContext(tokens, DOCUMENTS, positions=given).positions, given)


def test_rows_of_one_document_are_plain_rows() -> None:
    tokens = torch.arange(2 * T).view(2, T)
    whole = RowContext(tokens, torch.tensor([[0] * T, [3] * T]))
    assert whole._parts is None and whole._documents is None
    model = tiny.model(tiny.config())
    assert torch.equal(model(tokens, whole), model(tokens, RowContext(tokens)))
