"""Cross-entropy of a batch through an output head that never builds the full logits.

The head runs over a few hundred places at a time, on slots that have a target only. Each chunk's logits become its
loss and its gradients at once, so that the memory is that of one chunk, and the same matrix products are made as
without chunks. Plain tensor operations: the same on a CPU and on CUDA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pando.model.layers import product_dtype
from pando.model.transformer import Transformer
from pando.train.batch import PADDING, SIDE, Batch
from pando.train.routing import Routing, mixture_layers

_LOG2E = math.log2(math.e)
_CHUNK_NUMBERS = {"cpu": 1 << 21, "cuda": 1 << 27}  # logits of a chunk; more were slower on a CPU (its caches)


@dataclass(frozen=True)
class Loss:
    """What a batch cost, as sums: the loop divides once, after it has added up micro-batches and ranks.

    Attributes:
        total: float32 scalar with gradient, nats over all targets, the z-loss included.
        weight: float32 scalar, how many targets there are.
        logs: for each objective, "z" where there is a z-loss and "balance" where experts are balanced by one: float32
            [2], its sum in nats and its targets.
        loads: how many tokens each expert got, [layers with experts, experts]; None where there are none.
    """

    total: Tensor
    weight: Tensor
    logs: dict[str, Tensor]
    loads: Tensor | None = None


def batch_loss(
    model: Transformer, batch: Batch, *, z_loss: float = 0.0, balance: float = 0.0, chunk: int | None = None
) -> Loss:
    """The loss of a batch, whatever objectives it is made of.

    Args:
        model: or anything that wraps it and is called alike.
        batch: on the model's device.
        z_loss: factor on the squared log of the softmax's denominator, which keeps logits from drifting (PaLM,
            arXiv 2204.02311, section 5).
        balance: factor on the load-balancing loss of experts, for each target of the batch.
        chunk: places of a chunk of the head; None fits the device.
    """
    tokens, ctx, places = batch.inputs(model.config)
    routing = Routing(model.config, batch.documents.flatten() != PADDING) if mixture_layers(model.config) else None
    ctx.routed = routing
    hidden = model(tokens, ctx).flatten(0, -2)
    if batch.weight < hidden.shape[0]:
        hidden = hidden.index_select(0, F.pad(places, (0, -batch.weight % SIDE)))
    targets = batch.targets.flatten()[batch.places]
    hidden, cap = model.before_head(hidden), model.config.softcap
    total, nats, squares = head_loss(
        hidden, model.head_weight, targets, bias=model.head_bias, z_loss=z_loss, softcap=cap, chunk=chunk
    )
    kinds = batch.objective.flatten()[batch.places]
    sums = nats.new_zeros(len(batch.names), 2).index_add_(0, kinds, torch.stack((nats, torch.ones_like(nats)), dim=1))
    logs = dict(zip(batch.names, sums.unbind(), strict=True))
    weight = torch.tensor(float(batch.weight), device=nats.device)
    if z_loss:
        logs["z"] = torch.stack((z_loss * squares.sum(), weight))
    if routing is None:
        return Loss(total, weight, logs)
    if balance:
        spread = balance * weight * routing.loss()
        total = total + spread
        logs["balance"] = torch.stack((spread.detach(), weight))
    return Loss(total, weight, logs, routing.loads)


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy of targets [N] under softmax(hidden [N, D] @ weight [V, D].T).

    There may be further rows of `hidden`, which are of no account (see `SIDE`). Products are made in the dtype of
    `weight` (or of autocast, where it is on), sums and softmax in float32.

    Args:
        bias: [V], added to the products, or None.
        softcap: logits l become c tanh(l / c) before the softmax.

    Returns:
        The sum in nats (float32 scalar) with gradient, z-loss included; each place's nats and squared log-denominator,
        [N], without gradient.
    """
    if chunk is None:
        numbers = _CHUNK_NUMBERS.get(weight.device.type, _CHUNK_NUMBERS["cuda"])
        chunk = max(128, numbers // weight.shape[0] // SIDE * SIDE)
    found: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(hidden, weight, bias, targets, z_loss, softcap, chunk)  # type: ignore[no-untyped-call]
    return found


class _HeadLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits are there, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind = hidden.device.type
        number = product_dtype(weight)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(kind, enabled=False):
            w = weight.to(number)
            d_hidden = torch.empty_like(hidden) if wants_hidden else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
            rows, count = len(hidden), len(targets)
            nats, squares = (torch.empty(rows, device=hidden.device) for _ in range(2))
            targets = F.pad(targets, (0, rows - count))
            for start in range(0, rows, chunk):
                part = slice(start, start + chunk)
                h = hidden[part].to(number)
                logits = h @ w.T if bias is None else torch.addmm(bias.to(number), h, w.T)
                wanted = wants_hidden or wants_weight or wants_bias
                nats[part], log_total, grad = _chunk(logits, targets[part], z_loss, softcap, wanted)
                squares[part] = log_total.square()
                if start + chunk > count and wanted:
                    grad[max(0, count - start) :] = 0
                if d_bias is not None:
                    d_bias += grad.sum(0)
                grad = grad.to(number)
                if d_hidden is not None:
                    d_hidden[part] = grad @ w
                if d_weight is not None:
                    _add_product(d_weight, grad, h)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype), d_bias)
        nats, squares = nats[:count], squares[:count]
        ctx.mark_non_differentiable(nats, squares)
        total = nats.sum(dtype=torch.float64) + z_loss * squares.sum(dtype=torch.float64)
        return total.float(), nats, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if d is None else d.mul_(scale.to(d.dtype)) for d in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


def _chunk(
    logits: Tensor, targets: Tensor, z_loss: float, softcap: float | None, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats [N] and log-denominators [N] of logits [N, V], and the gradient for the logits in their own memory."""
    logits = logits.float()
    slope = None
    if softcap is not None:
        logits = logits.div_(softcap).tanh_()
        slope = 1 - logits.square() if wants_gradient else None
        logits = logits.mul_(softcap)
    picked = targets[:, None]
    chosen = logits.gather(1, picked)[:, 0]
    highest = logits.amax(1)
    # to base 2, which is three times as fast on a CPU
    exponentials = torch.add((-_LOG2E * highest)[:, None], logits, alpha=_LOG2E, out=logits).exp2_()
    sums = exponentials.sum(1)
    log_total = highest + sums.log()
    nats = log_total - chosen
    if wants_gradient:
        exponentials.mul_(((1 + 2 * z_loss * log_total) / sums)[:, None])
        exponentials.scatter_add_(1, picked, exponentials.new_full(picked.shape, -1.0))
        if slope is not None:
            exponentials.mul_(slope)
    return nats, log_total, exponentials


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [V, D] (float32) += left [N, V].T @ right [N, D]."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total.add_(left.T @ right)
