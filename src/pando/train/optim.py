"""The optimiser: Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all; its schedule; and the
guard that skips steps whose loss or gradient is not to be trusted, without asking the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pando.train.muon import Adam, MuonStack, local_part

_SCORING = (".router.weight", ".shared_gate.weight")  # matrices that give scores, not vectors: AdamW, no decay


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    Attributes:
        kind: "muon", or "adamw" for every parameter.
        matrix_rate: peak learning rate of Muon.
        rate: peak learning rate of AdamW.
        momentum: of Muon; it warms up from 0.85 over `momentum_steps` steps.
        momentum_steps: see `momentum`.
        second_beta: of NorMuon's second moment; 0 leaves NorMuon out.
        beta1, beta2, epsilon: of AdamW.
        weight_decay: of matrices. Embedding, head, norms and biases are not decayed.
        warmup: share of the steps over which the rate rises.
        decay: share of the steps, the last ones, over which it falls.
        final: what it falls to, as a share of the peak.
        clip: largest gradient norm; 0 does not clip.
        spike_sigmas: a step is skipped if its loss or gradient norm lies so many standard deviations above those of
            the `spike_window` steps before it (as OLMo-core's SkipStepAdamW); 0 skips only what is not finite.
        spike_window: see `spike_sigmas`.
    """

    kind: Literal["muon", "adamw"] = "muon"
    matrix_rate: float = 0.02
    rate: float = 0.004
    momentum: float = 0.95
    momentum_steps: int = 300
    second_beta: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    weight_decay: float = 0.0
    warmup: float = 0.02
    decay: float = 0.5
    final: float = 0.05
    clip: float = 0.0
    spike_sigmas: float = 6.0
    spike_window: int = 128


def rate_scale(step: int, steps: int, config: OptimConfig) -> float:
    """Warmup, stable, decay (WSD, arXiv 2404.06395) with a linear decay: what the peak rates are multiplied by.

    Args:
        step: from 0. steps: of the whole run.
    """
    warm, down = round(config.warmup * steps), round(config.decay * steps)
    up = (step + 1) / (warm + 1) if step < warm else 1.0
    left = (steps - step) / (down + 1) if step > steps - down - 1 else 1.0
    return min(up, config.final + (1 - config.final) * min(1.0, left))


class Optimiser:
    """Updates a model's parameters from their gradients. Everything it keeps is on the parameters' device.

    Args:
        model: parameters may be sharded by rows (FSDP2).
        config: rates and the rest.
        number: dtype of Muon's products.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, number: torch.dtype = torch.float32) -> None:
        self.config = config
        parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {name: p for name, p in parameters.items() if p.ndim > 1 and _in_block(name)}
        shapes: dict[torch.Size, dict[str, Tensor]] = {}
        for name, p in matrices.items() if config.kind == "muon" else ():
            shapes.setdefault(p.shape, {})[name] = p
        self.stacks = [MuonStack(stack, normalise=config.second_beta > 0, number=number) for stack in shapes.values()]
        plain = {name: p for name, p in parameters.items() if name not in matrices}
        self.plain = Adam(plain)
        self.decayed = Adam(matrices) if config.kind == "adamw" and matrices else None
        self._parameters = list(parameters.values())
        self._device = local_part(self._parameters[0]).device
        self._made = 0

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, over all ranks, as a scalar on the device."""
        parts = [local_part(p.grad) for p in self._parameters if p.grad is not None]
        square = torch.stack(torch._foreach_norm(parts)).square().sum()
        if isinstance(self._parameters[0], DTensor):
            dist.all_reduce(square, group=self._parameters[0].device_mesh.get_group())
        return square.sqrt()

    @torch.no_grad()
    def step(self, scale: float, keep: Tensor | None = None, norm: Tensor | None = None) -> None:
        """One update from the gradients that are there; they are let go afterwards.

        Args:
            scale: on the peak rates, of the schedule.
            keep: scalar 1 or 0; 0 leaves weights and state as they are. None keeps.
            norm: the gradients' norm; needed where they are clipped.
        """
        config = self.config
        keep = torch.ones((), device=self._device) if keep is None else keep.float()
        if config.clip and norm is not None:
            factor = (config.clip / norm.clamp_min(config.clip)).nan_to_num(0.0)
            torch._foreach_mul_([local_part(p.grad) for p in self._parameters if p.grad is not None], factor)
        momentum = self._momentum()
        matrix_rate, rate = (
            torch.tensor(peak * scale, device=self._device) for peak in (config.matrix_rate, config.rate)
        )
        for stack in self.stacks:
            stack.step(matrix_rate, keep, momentum, config.second_beta, config.weight_decay)
        betas = (config.beta1, config.beta2)
        self.plain.step(rate, keep, betas, config.epsilon, 0.0)
        if self.decayed is not None:
            self.decayed.step(rate, keep, betas, config.epsilon, config.weight_decay)
        self._made += 1
        for p in self._parameters:
            p.grad = None

    def _momentum(self) -> float:
        """Of the next step: it warms up from 0.85."""
        left = 1 - self._made / self.config.momentum_steps if self._made < self.config.momentum_steps else 0.0
        return self.config.momentum + (0.85 - self.config.momentum) * left

    def state(self) -> dict[str, Tensor]:
        """Tensors by name; a loader fills them in place. Sharded as the parameters are."""
        parts: list[MuonStack | Adam] = [*self.stacks, self.plain, *([self.decayed] if self.decayed else [])]
        return {name: tensor for part in parts for name, tensor in part.state().items()}

    def state_dict(self) -> dict[str, int]:
        """The rest of the state: plain numbers."""
        return {"made": self._made}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up what `state_dict` told."""
        self._made = state["made"]


def _in_block(name: str) -> bool:
    """Whether a parameter is one of a block's, its router's scores excepted."""
    return name.removeprefix("encoder.").startswith("layers.") and not name.endswith(_SCORING)


def build_optimiser(model: nn.Module, config: OptimConfig, number: torch.dtype = torch.float32) -> Optimiser:
    """The optimiser of a model; Muon's products are made in `number`."""
    return Optimiser(model, config, number)


class Guard:
    """Says of each step whether to keep it: its loss and gradient norm are finite and no spike among those of the last
    steps. Decided on the device; nobody waits for it.

    Spikes are judged once half the window is known. Skipped steps are remembered like others, so that a loss that
    stays at a new level is accepted in the end.
    """

    def __init__(self, config: OptimConfig, device: torch.device) -> None:
        self._sigmas = config.spike_sigmas
        self._seen = torch.zeros(2, max(2, config.spike_window), device=device)  # losses, norms
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(self._seen.shape[1], device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 to keep the step, 0 to skip it: a float32 scalar on the device."""
        new = torch.stack((loss, norm)).float()
        finite = new.isfinite().all()
        keep = finite
        window = self._seen.shape[1]
        if self._sigmas:
            known = self._places < self._count
            n = known.sum().clamp_min(1)
            mean = (self._seen * known).sum(1) / n
            spread = (((self._seen - mean[:, None]).square() * known).sum(1) / n).sqrt()
            calm = (new <= mean + self._sigmas * spread).all() | (self._count < window // 2)
            keep = finite & calm
        here = (self._places == self._count % window) & finite
        self._seen.copy_(torch.where(here, new[:, None], self._seen))
        self._count += finite
        return keep.float()

    def state(self) -> dict[str, Tensor]:
        """Tensors by name; a loader fills them in place."""
        return {"seen": self._seen, "count": self._count}
