"""Muon for stacks of matrices of one shape, and fused AdamW for everything else. Both act on a rank's own part of each
parameter; what is sharded is gathered only for the orthogonalisation.

Shapes: K matrices [M, N] of one shape are a stack [K, M, N]; a rank holds rows [m, N] of each. Parameters that are
stacks themselves (experts, [E, M, N]) lie one behind the other in it, and a rank holds whole matrices of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Quintic steps of Polar Express (Amsel et al., arXiv 2505.16932) for 5 iterations, safety factor 2e-2, cushion 2."""

QUINTIC = ((3.4445, -4.7750, 2.0315),) * 5
"""Keller Jordan's Newton-Schulz steps, which `torch.optim.Muon` uses; here as the reference that tests compare with."""


def orthogonalise(
    stack: Tensor,
    coefficients: Sequence[tuple[float, float, float]] = POLAR_EXPRESS,
    number: torch.dtype = torch.float32,
    margin: float = 1.01,
) -> Tensor:
    """The nearest semi-orthogonal matrix of each of a stack [K, M, N], approximately: its singular values become
    nearly 1. Products are made in `number`; the result has it too.

    Args:
        coefficients: (a, b, c) of each step x -> a x + (b g + c g g) x with g = x x^T.
        margin: the norm is divided by so much more, as rounding must not lift a singular value above 1.
    """
    x = stack.to(number)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * margin + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def even_out(update: Tensor, second: Tensor, beta: Tensor | float) -> Tensor:
    """NorMuon (Li et al., arXiv 2510.05491): divides each neuron's part of an orthogonalised update [K, M, N] by the
    root of its running second moment, then restores each matrix's norm.

    Args:
        second: running mean squares [K, M, 1], or [K, 1, N] where columns are fewer; changed in place.
        beta: what of it is kept, a scalar tensor; 1 changes nothing.
    """
    along = -1 if second.shape[-1] == 1 else -2
    squares = update.square().mean(dim=along, keepdim=True)
    second.lerp_(squares, 1 - beta)
    scale = second.clamp_min(1e-10).rsqrt()
    before = squares.sum(dim=(-2, -1), keepdim=True)
    after = (squares * scale.square()).sum(dim=(-2, -1), keepdim=True)
    return update * (scale * (before / after.clamp_min(1e-10)).sqrt())


class MuonStack:
    """Matrices of one shape, updated together.

    Args:
        parameters: by name, all [M, N] or all [E, M, N]; tensors, or DTensors sharded by their first dimension over one
            mesh.
        normalise: whether `even_out` is applied.
        number: dtype of the orthogonalisation's products.
        coefficients, margin: see `orthogonalise`.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        *,
        normalise: bool = True,
        number: torch.dtype = torch.float32,
        coefficients: Sequence[tuple[float, float, float]] = POLAR_EXPRESS,
        margin: float = 1.01,
    ) -> None:
        self.parameters = parameters
        first = next(iter(parameters.values()))
        rows, columns = first.shape[-2:]
        local = local_part(first)
        self._stacks = first.ndim == 3
        inner = (rows, 1) if rows >= columns else (1, columns)
        shape = (len(parameters), *local.shape[:-2], *inner)
        self._momentum = torch.zeros(len(parameters), *local.shape, device=local.device)
        self._second = torch.zeros(shape, device=local.device) if normalise else None
        self._number, self._coefficients, self._margin = number, coefficients, margin

    @torch.no_grad()
    def step(self, rate: Tensor, keep: Tensor, momentum: float, beta: float, decay: float) -> None:
        """One update from the parameters' gradients.

        Args:
            rate: learning rate, a scalar tensor; an update's matrices have singular values near `rate`, times the
                root of M / N where M is larger (which is what the change of an output needs to be of one size).
            keep: 1, or 0 to leave parameters and state as they are (a scalar tensor; gradients may then be anything).
            momentum: of the Nesterov average. beta: of NorMuon's second moment.
            decay: weight decay; a number is decayed only where the update does not push the other way (cautious
                decay, arXiv 2510.12402).
        """
        parts = [local_part(p) for p in self.parameters.values()]
        gradients = torch.stack([local_part(cast(Tensor, p.grad)) for p in self.parameters.values()])
        gradients.masked_fill_(keep == 0, 0.0)
        self._momentum.lerp_(gradients, (1 - momentum) * keep)
        update = self._orthogonal(torch.lerp(gradients, self._momentum, momentum))
        if self._second is not None:
            update = even_out(update, self._second, 1 - (1 - beta) * keep)
        rows, columns = next(iter(self.parameters.values())).shape[-2:]
        update = self._own_rows(update) * (rate * keep * max(1.0, rows / columns) ** 0.5)
        if decay:
            weights = torch.stack(parts)
            update += torch.where(update * weights > 0, weights, 0.0) * (rate * keep * decay)
        torch._foreach_sub_(parts, list(update.unbind()))

    def state(self) -> dict[str, Tensor]:
        """State by name: views, which a loader fills in place. Momenta are sharded as their parameters are."""
        found = {f"momentum.{name}": like(p, self._momentum[i]) for i, (name, p) in enumerate(self.parameters.items())}
        if self._second is not None:
            for i, (name, p) in enumerate(self.parameters.items()):
                found[f"second.{name}"] = like(p, self._second[i]) if self._stacks else self._second[i]
        return found

    def _orthogonal(self, update: Tensor) -> Tensor:
        """[K, m, N] of each rank -> [K, M, N] on every rank; each rank works on its share of the stack."""
        first = next(iter(self.parameters.values()))
        if self._stacks:
            flat = update.flatten(0, 1)
            made = orthogonalise(flat, self._coefficients, self._number, self._margin).float()
            return made.view(update.shape)
        if not isinstance(first, DTensor):
            return orthogonalise(update, self._coefficients, self._number, self._margin).float()
        mesh, count = first.device_mesh, len(update)
        shape = torch.Size((count, *first.shape))
        whole = DTensor.from_local(
            update, mesh, [Shard(1)], run_check=False, shape=shape, stride=(shape[1] * shape[2], shape[2], 1)
        ).full_tensor()
        share = -(-count // mesh.size())
        padded = torch.cat((whole, whole.new_zeros(share * mesh.size() - count, *first.shape)))
        mine = padded[mesh.get_local_rank() * share :][:share]
        done = orthogonalise(mine, self._coefficients, self._number, self._margin).float().contiguous()
        # the older name of torch 2.11 is going away
        gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(padded, done, group=mesh.get_group())
        return padded[:count]

    def _own_rows(self, update: Tensor) -> Tensor:
        first = next(iter(self.parameters.values()))
        if self._stacks or not isinstance(first, DTensor):
            return update
        start = first_row(first)
        return update[:, start : start + first.to_local().shape[0]]


class Adam:
    """AdamW (arXiv 1711.05101) by torch's fused kernel, which leaves everything as it is where it is told to.

    Args:
        parameters: by name; tensors or DTensors.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters
        parts = [local_part(p) for p in parameters.values()]
        self._first = [torch.zeros_like(part) for part in parts]
        self._second = [torch.zeros_like(part) for part in parts]
        self._steps = [torch.zeros((), device=part.device) for part in parts]

    @torch.no_grad()
    def step(self, rate: Tensor, keep: Tensor, betas: tuple[float, float], epsilon: float, decay: float) -> None:
        """One update from the parameters' gradients; `rate` and `keep` as for `MuonStack.step`."""
        from torch.optim.adamw import adamw

        adamw(
            [local_part(p) for p in self.parameters.values()],
            [local_part(cast(Tensor, p.grad)) for p in self.parameters.values()],
            self._first,
            self._second,
            [],
            self._steps,
            fused=True,
            found_inf=1 - keep,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=decay,
            eps=epsilon,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """State by name, as `MuonStack.state`."""
        found: dict[str, Tensor] = {}
        for i, (name, p) in enumerate(self.parameters.items()):
            found[f"first.{name}"] = like(p, self._first[i])
            found[f"second.{name}"] = like(p, self._second[i])
            found[f"steps.{name}"] = self._steps[i]
        return found


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """`part` as this rank's part of a tensor that is laid out as `parameter` is, by its first dimension."""
    if not isinstance(parameter, DTensor):
        return part
    shape = torch.Size((parameter.shape[0], *part.shape[1:]))
    made: Any = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )
    return cast(Tensor, made)


def first_row(parameter: DTensor) -> int:
    """The first row that this rank holds: rows are dealt out in pieces of one size, as `torch.chunk` cuts them."""
    piece = -(-parameter.shape[0] // parameter.device_mesh.size())
    return min(parameter.shape[0], piece * parameter.device_mesh.get_local_rank())
