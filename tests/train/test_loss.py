"""The chunked head against torch's own cross-entropy; the loss of a batch however it is laid out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig
from pando.model.context import RowContext
from pando.model.transformer import Transformer
from pando.train.batch import Batch, collate_rows
from pando.train.loss import batch_loss, head_loss
from pando.train.objectives import make_mixture
from pando.train.packing import Piece
from pando.train.shards import Shards, open_shards
from pando.train.stream import Stream, _Maker
from tests.train import corpus

T = 64


def model(tied: bool = True, vocab: int = 400) -> Transformer:
    layer = LayerConfig(AttentionConfig(4, 2, 8, RopeConfig(8)), MlpConfig(48))
    made = Transformer(ModelConfig("llama", vocab, 32, (layer,) * 2, 128, tied=tied))
    made.initialise(0)
    with torch.no_grad():
        made.embed.weight.mul_(10)
    return made


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [1, 7, 50, None])
@pytest.mark.parametrize("filling", [0, 14])
def test_chunked_head_is_cross_entropy_and_its_gradients(z_loss: float, chunk: int | None, filling: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, requires_grad=True) for n in (50 + filling, 90))
    targets = torch.randint(0, 90, (50,), generator=generator)
    total, nats, squares = head_loss(hidden, weight, targets, z_loss=z_loss, chunk=chunk)
    found = torch.autograd.grad(total * 0.3, (hidden, weight))
    logits = hidden[:50] @ weight.T
    expected = F.cross_entropy(logits, targets, reduction="none")
    denominators = logits.logsumexp(1).square()
    wanted = torch.autograd.grad((expected.sum() + z_loss * denominators.sum()) * 0.3, (hidden, weight))
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares, denominators.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, expected.sum() + z_loss * denominators.sum(), rtol=1e-5, atol=1e-4)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_huge_logits_stay_finite() -> None:
    hidden, weight = torch.full((3, 2), 300.0, requires_grad=True), torch.tensor([[1.0, 0], [0, -1], [3, 3]])
    total, nats, _ = head_loss(hidden, weight, torch.tensor([0, 1, 2]))
    total.backward()
    assert nats.isfinite().all() and hidden.grad is not None and hidden.grad.isfinite().all()


def test_only_what_is_wanted_gets_a_gradient() -> None:
    hidden, weight, targets = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True), torch.arange(5)
    head_loss(hidden, weight, targets)[0].backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not head_loss(hidden, weight, targets)[0].requires_grad


def test_bfloat16_head_and_autocast_are_near_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(60, 32, generator=generator), torch.randn(90, 32, generator=generator)
    targets = torch.randint(0, 90, (60,), generator=generator)
    exact = head_loss(hidden, weight, targets)[0].detach()
    rounded = weight.bfloat16().requires_grad_()
    total, nats, _ = head_loss(hidden, rounded, targets, chunk=16)
    total.backward()
    assert rounded.grad is not None and rounded.grad.dtype == torch.bfloat16 and nats.dtype == torch.float32
    assert abs(float(total.detach() - exact)) < 0.01 * float(exact)
    master = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = head_loss(hidden, master, targets, chunk=16)[0]
    cast.backward()
    assert master.grad is not None and master.grad.dtype == torch.float32
    assert abs(float(cast.detach() - exact)) < 0.01 * float(exact)


def test_full_logits_are_never_built() -> None:
    """No tensor that the loss makes has as many numbers as there are logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return out

    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (512, 256))
    with Watch():
        head_loss(hidden, weight, torch.zeros(512, dtype=torch.int64), chunk=32)[0].backward()
    assert largest == 32 * 256


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(corpus.write_texts(tmp_path_factory.mktemp("texts"), corpus.sentences(60)))


@pytest.fixture(scope="module")
def batch(shards: Shards) -> Batch:
    return next(Stream(shards, make_mixture({"causal": 1.0}, shards), T, 8, 0))


def gradients(made: Transformer, batches: list[Batch]) -> tuple[float, list[torch.Tensor]]:
    """Mean loss of several micro-batches and its gradients, as the loop makes them."""
    weight, total = sum(batch.weight for batch in batches), 0.0
    parameters = list(made.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for one in batches:
        loss = batch_loss(made, one, z_loss=1e-3).total / weight
        total += float(loss.detach())
        for s, g in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            s += g
    return total, sums


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("objectives", [{"causal": 1.0}, {"masked": 1.0, "span": 1.0, "fim": 1.0}])
def test_one_batch_or_many_packed_or_padded_is_the_same(shards: Shards, tied: bool, objectives: dict) -> None:
    made = model(tied)
    batch = next(Stream(shards, make_mixture(objectives, shards), T, 8, 0))
    documents = [(r, n) for r, numbers in enumerate(batch.documents) for n in numbers.unique().tolist() if n >= 0]
    alone = []
    for r, n in documents:
        here = batch.documents[r] == n
        row = torch.zeros(1, T, dtype=torch.int64)
        size = int(here.sum())
        arrays = {}
        for name, filler in (("tokens", 0), ("targets", -100), ("documents", -1), ("objective", 0), ("prefix", 0)):
            arrays[name] = torch.full_like(row, filler)
            arrays[name][0, :size] = getattr(batch, name)[r][here]
        arrays["prefix"] = arrays["prefix"].bool()
        places = (arrays["targets"].flatten() != -100).nonzero()[:, 0]
        arrays["positions"] = torch.arange(T)[None]
        alone.append(Batch(**arrays, names=batch.names, places=places))
    layouts = {
        "8x1": [batch],
        "1x8": [batch.rows(slice(i, i + 1)) for i in range(8)],
        "padded": alone,
    }
    found = {name: gradients(made, batches) for name, batches in layouts.items()}
    for a, b in itertools.combinations(found.values(), 2):
        assert a[0] == pytest.approx(b[0], abs=1e-5)
        for x, y in zip(a[1], b[1], strict=True):
            assert (x - y).abs().max() < 1e-5


def test_loss_is_a_sum_with_its_parts(batch: Batch) -> None:
    made = model()
    loss = batch_loss(made, batch, z_loss=0.1)
    assert float(loss.weight) == batch.weight
    assert loss.logs.keys() == {"causal", "z"}
    total = loss.logs["causal"][0] + loss.logs["z"][0]
    torch.testing.assert_close(total, loss.total.detach(), rtol=1e-5, atol=1e-3)
    assert float(loss.logs["causal"][1]) == batch.weight
    hidden = made(batch.tokens, RowContext(batch.tokens, batch.documents))
    expected = F.cross_entropy(made.head(hidden).flatten(0, 1), batch.targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss.logs["causal"][0], expected.detach(), rtol=1e-5, atol=1e-3)


def test_documents_of_a_row_do_not_see_each_other(batch: Batch) -> None:
    """The gradient of a document's loss is zero at every input vector that is not its own."""
    made = model()
    vectors = made.embed(batch.tokens).detach().requires_grad_()
    hidden = made.run(vectors, batch.inputs(made.config).context)
    for r, number in ((0, 0), (3, 1)):
        mine = (torch.arange(8)[:, None] == r) & (batch.documents == number)
        gradient = torch.autograd.grad(hidden[mine].sum(), vectors, retain_graph=True)[0]
        assert (gradient[~mine] == 0).all()
        assert (gradient[mine].abs().sum(-1) > 0).all()


def test_no_place_sees_its_own_target(tmp_path: Path) -> None:
    shards = open_shards(corpus.write_texts(tmp_path, corpus.sentences(20)))
    mixture = make_mixture({"causal": 1.0}, shards)
    for document in shards.documents("train"):
        for example in _Maker(mixture, T, 0).examples(document, 0, 0).values():
            assert example.tokens[1:].tolist() == example.targets[:-1].tolist()
    piece = Piece(0, (0, 0), example, 0, len(example.tokens))
    assert collate_rows([[piece]], 128, mixture.names, shards.end).weight == len(example.tokens)
