"""Muon and AdamW against torch's own, the schedule, and the guard that skips steps."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from pando.train.muon import QUINTIC, MuonStack, even_out, orthogonalise
from pando.train.optim import Guard, OptimConfig, build_optimiser, rate_scale

ONE = torch.ones(())


class Small(nn.Module):
    """Names as in a transformer: matrices of two shapes in `layers`, the rest outside."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 24, bias=False), "down": nn.Linear(24, 8, bias=True)}) for _ in range(3)
        )

    def loss(self, step: int) -> torch.Tensor:
        x = self.embed(torch.arange(11).roll(step))
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))
        return (x - torch.arange(8.0)).square().mean()


def _stepped(model: Small, optimiser: torch.optim.Optimizer, steps: int = 5) -> dict[str, torch.Tensor]:
    for step in range(steps):
        optimiser.zero_grad()
        model.loss(step).backward()
        optimiser.step()
    return dict(model.named_parameters())


def test_adamw_is_torchs() -> None:
    mine, theirs = Small(), Small()
    config = OptimConfig(kind="adamw", rate=0.01, weight_decay=0.1, epsilon=1e-8)
    optimiser = build_optimiser(mine, config)
    for step in range(5):
        mine.loss(step).backward()
        optimiser.step(1.0)
    decayed = [p for name, p in theirs.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    others = [p for p in theirs.parameters() if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    wanted = _stepped(theirs, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8))
    for name, p in mine.named_parameters():
        torch.testing.assert_close(p, wanted[name], atol=1e-6, rtol=1e-5)


def test_muon_without_its_additions_is_torchs() -> None:
    mine, theirs = Small(), Small()
    names = [name for name, p in mine.named_parameters() if name.endswith("up.weight")]
    parameters = dict(mine.named_parameters())
    stack = MuonStack(
        {n: parameters[n] for n in names}, normalise=False, number=torch.bfloat16, coefficients=QUINTIC, margin=1.0
    )
    reference = dict(theirs.named_parameters())
    optimiser = torch.optim.Muon([reference[n] for n in names], lr=0.02, momentum=0.95, weight_decay=0.0, ns_steps=5)
    for step in range(5):
        for model in (mine, theirs):
            model.zero_grad()
            model.loss(step).backward()
        stack.step(torch.tensor(0.02), ONE, 0.95, 0.0, 0.0)
        optimiser.step()
    for name in names:
        torch.testing.assert_close(parameters[name], reference[name], atol=2e-3, rtol=0)  # bfloat16 products


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 24, 8), (2, 8, 40), (1, 1, 7)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.7 and values.max() < 1.2
    assert torch.isfinite(orthogonalise(torch.zeros(shape))).all()


def test_evening_out_keeps_the_norm_and_levels_the_neurons() -> None:
    update = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7)[:, None]
    second = torch.zeros(2, 6, 1)
    even = even_out(update, second, 0.0)
    torch.testing.assert_close(even.norm(dim=(1, 2)), update.norm(dim=(1, 2)))
    rows = even.norm(dim=2)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(second, update.square().mean(2, keepdim=True))


def _plain_muon(p: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor], config: OptimConfig) -> torch.Tensor:
    """One matrix, one line for each thing that the papers say."""
    m = state["m"] = config.momentum * state.get("m", torch.zeros_like(p)) + (1 - config.momentum) * g
    u = (1 - config.momentum) * g + config.momentum * m
    o = orthogonalise(u[None])[0]
    along = 1 if p.shape[0] >= p.shape[1] else 0
    v = o.square().mean(along, keepdim=True)
    s = state["s"] = config.second_beta * state.get("s", torch.zeros_like(v)) + (1 - config.second_beta) * v
    scaled = o / s.clamp_min(1e-10).sqrt()  # a neuron that never had a gradient
    o = scaled * o.norm() / scaled.norm()
    rate = config.matrix_rate * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
    return p - rate * o - config.matrix_rate * config.weight_decay * p * (o * p > 0)


def test_muon_stacks_are_the_plain_algorithm() -> None:
    config = OptimConfig(weight_decay=0.1, momentum_steps=0)
    mine, theirs = Small(), Small()
    optimiser = build_optimiser(mine, config)
    assert [len(stack.parameters) for stack in optimiser.stacks] == [3, 3]
    states: dict[str, dict[str, torch.Tensor]] = {}
    plain = {name: p for name, p in theirs.named_parameters() if name.startswith("layers.") and p.ndim == 2}
    for step in range(4):
        mine.loss(step).backward()
        optimiser.step(1.0)
        theirs.zero_grad()
        theirs.loss(step).backward()
        with torch.no_grad():
            for name, p in plain.items():
                p.copy_(_plain_muon(p, p.grad, states.setdefault(name, {}), config))
            for name, p in theirs.named_parameters():  # the rest is AdamW's; take it over
                if name not in plain:
                    p.copy_(dict(mine.named_parameters())[name])
    for name, p in plain.items():
        torch.testing.assert_close(p, dict(mine.named_parameters())[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_skipped_step_leaves_all_as_it_was(kind: str) -> None:
    model = Small()
    optimiser = build_optimiser(model, OptimConfig(kind=kind, weight_decay=0.1))  # type: ignore[arg-type]
    model.loss(0).backward()
    optimiser.step(1.0)
    before = copy.deepcopy((model.state_dict(), optimiser.state()))
    (model.loss(1) * float("nan")).backward()
    optimiser.step(1.0, torch.zeros(()))
    for old, new in zip(before, (model.state_dict(), optimiser.state()), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    model.loss(1).backward()
    optimiser.step(1.0)
    assert not torch.equal(before[0]["embed.weight"], model.embed.weight)


def test_the_guard_skips_spikes_and_what_is_not_finite() -> None:
    guard = Guard(OptimConfig(spike_window=16), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)

    def judge(loss: float, norm: float) -> bool:
        return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))

    assert judge(50.0, 1.0)  # nothing is known yet
    assert not judge(float("nan"), 1.0) and not judge(3.0, float("inf"))
    for _ in range(20):
        assert judge(3 + 0.1 * float(torch.rand((), generator=draw)), 1 + 0.1 * float(torch.rand((), generator=draw)))
    assert not judge(9.0, 1.0) and not judge(3.0, 9.0)
    assert any(judge(9.0, 1.0) for _ in range(20))  # a new level is accepted in the end


def test_the_schedule_warms_up_stays_and_falls() -> None:
    config = OptimConfig(warmup=0.1, decay=0.5, final=0.1)
    scales = [rate_scale(step, 100, config) for step in range(100)]
    assert scales[0] == pytest.approx(1 / 11) and scales[10:50] == [1.0] * 40
    assert all(a > b for a, b in pairwise(scales[50:])) and 0.1 < scales[-1] < 0.13
    assert [rate_scale(0, 1, config)] == [1.0] or 0 < rate_scale(0, 1, config) <= 1


def test_clipping_scales_all_gradients() -> None:
    model, free = Small(), Small()
    config = OptimConfig(kind="adamw", clip=0.5, epsilon=1.0)  # a large epsilon makes the size of gradients matter
    for one, clip in ((model, 0.5), (free, 0.0)):
        optimiser = build_optimiser(one, OptimConfig(kind="adamw", clip=clip, epsilon=1.0))
        one.loss(0).backward()
        norm = optimiser.gradient_norm()
        torch.testing.assert_close(norm, nn.utils.get_total_norm([p.grad for p in one.parameters()]))
        assert norm > config.clip
        optimiser.step(1.0, norm=norm)
    start = Small()
    moved = [(a - b).abs().sum() for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    freely = [(a - b).abs().sum() for a, b in zip(start.parameters(), free.parameters(), strict=True)]
    assert sum(moved) < sum(freely)
