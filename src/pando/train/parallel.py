"""One process or many: who this rank is, and how a model is laid out over the ranks. The model itself knows none of it.

Ranks are started by torchrun. With more than one, parameters, gradients and optimiser state are sharded by rows (FSDP2,
`fully_shard`) block by block; gloo joins CPUs, NCCL joins GPUs.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from pando.errors import PandoError
from pando.model.base import open_base
from pando.model.config import ModelConfig
from pando.model.transformer import Transformer
from pando.train.muon import first_row

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_ names of malloc.h


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank, world: its number and how many there are.
        device: what it computes on.
        mesh: of all ranks; None where there is only one.
    """

    rank: int
    world: int
    device: torch.device
    mesh: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """How many machines the ranks are on, as torchrun says it."""
        return max(1, self.world // int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: float) -> float:
        """What the first rank says."""
        if self.world == 1:
            return value
        said = torch.tensor(float(value), dtype=torch.float64)  # through gloo, so that no device is waited for
        dist.broadcast(said, 0)
        return float(said)

    def meet(self) -> None:
        """Waits until all ranks are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(()))

    def share(self, rows: int) -> slice:
        """Which rows of a step are this rank's.

        Raises:
            PandoError: they cannot be dealt out evenly.
        """
        if rows % self.world:
            raise PandoError(
                f"a step of {rows} rows cannot be divided among {self.world} ranks: set `batch` accordingly"
            )
        each = rows // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


@contextmanager
def joined(device: str = "auto") -> Iterator[Place]:
    """Joins the other ranks, if torchrun started any, and parts from them at the end. On a CPU the process keeps what
    it frees from then on.

    Args:
        device: "auto" (CUDA, else CPU), "cpu" or "cuda".

    Raises:
        PandoError: no such device, or its memory does not suffice for what was done there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise PandoError("machine.device is cuda, but this machine has none; use auto or cpu")
    if device == "cpu":
        keep_freed_memory()
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = torch.device(device, int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    try:
        if world == 1:
            yield Place(0, 1, place)
            return
        from torch.distributed.device_mesh import init_device_mesh

        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        try:
            yield Place(rank, world, place, init_device_mesh(device, (world,)))
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise PandoError(
                f"the memory of the {'GPU' if device == 'cuda' else 'machine'} does not suffice: take a smaller size, "
                "set machine.micro_rows to fewer rows, or machine.recompute: true"
            ) from None
        raise


def keep_freed_memory() -> None:
    """Tells glibc to keep what this process frees, at whatever size (mallopt(3)). A step on a CPU allocates the same
    large tensors again and again, and the kernel would fill each of their pages with zeros again. Other C libraries are
    left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def lay_out(
    config: ModelConfig,
    place: Place,
    seed: int,
    base: str | None = None,
    *,
    compiled: bool = False,
    recompute: bool = False,
) -> Transformer:
    """A model on this rank's device, sharded where there are several. Its weights are the same for any number of ranks
    and any device.

    Args:
        base: whose weights it has; None: fresh ones.
        compiled: blocks are compiled one by one (they share one compilation).
        recompute: the activations of a block are computed again in the backward pass.
    """
    if base is None:
        reference = Transformer(config)
        reference.initialise(seed)
    else:
        reference = open_base(base).module()
        for name, parameter in reference.named_parameters():
            parameter.requires_grad_(not name.endswith("router.bias"))  # which balancing moves
    if place.world == 1:
        model = reference.to(place.device)
    else:
        from torch.distributed.fsdp import fully_shard

        with torch.device("meta"):
            model = Transformer(config)
        for block in model.blocks:
            fully_shard(block, mesh=place.mesh)
        fully_shard(model, mesh=place.mesh)
        model.to_empty(device=place.device)
        for part in (*model.blocks, model):  # the loss is divided by the weight of all ranks; gradients add up
            part.set_gradient_divide_factor(1.0)  # type: ignore[operator]
            part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
        fill(model, dict(reference.named_parameters()))
    for block in model.blocks:
        if recompute:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile(dynamic=False)
    return model.train()


@torch.no_grad()
def fill(model: Transformer, whole: dict[str, Tensor]) -> None:
    """Copies whole tensors by name into a model, of which each rank takes its part."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            local = parameter.to_local()
            start = first_row(parameter)
            local.copy_(whole[name][start : start + local.shape[0]])
        else:
            parameter.copy_(whole[name])


@torch.no_grad()
def gathered(model: Transformer, place: Place) -> Transformer | None:
    """The whole model on the CPU of the first rank; None elsewhere. All ranks must call it."""
    settle(model)
    twin = Transformer(model.config) if place.first else None
    target = dict(twin.named_parameters()) if twin is not None else {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if name in target:
            target[name].copy_(whole)
    return None if twin is None else twin.eval().requires_grad_(False)


def settle(model: Transformer) -> None:
    """Gives back what a forward pass without a backward pass has gathered."""
    found: Any = model
    if hasattr(found, "reshard"):
        for block in model.blocks:
            block.reshard()  # type: ignore[operator]
        found.reshard()


def last_of_step(model: Transformer, last: bool) -> None:
    """Gradients go between ranks in the last backward pass of a step only."""
    found: Any = model
    if hasattr(found, "set_requires_gradient_sync"):
        found.set_requires_gradient_sync(last)
