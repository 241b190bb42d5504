"""Before anything is spent: how fast, how long, how much memory and money, and what loss to expect. A few steps of the
real model on real rows are timed; nothing is written.
"""

from __future__ import annotations

import math
import re
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from pando.errors import PandoError
from pando.model.config import ModelConfig
from pando.train.config import PretrainConfig, learns_causally
from pando.train.dial import CorpusFacts, train_flops

if TYPE_CHECKING:
    from pando.train.trainer import Trainer

# bf16 dense peaks in FLOPs a second, from NVIDIA's data sheets; a device that is not here has no MFU
PEAKS = {
    "H100 SXM": 989e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "A100": 312e12, "L4": 121e12,
    "RTX 4090": 165e12, "B200": 2250e12,
}  # fmt: skip

# Loss in nats a token of N weights after D tokens: E + A / N**a + B / D**b. Two fits of the same runs.
FITS = {
    "Hoffmann et al., arXiv 2203.15556": (1.69, 406.4, 0.34, 410.7, 0.28),
    "Besiroglu et al., arXiv 2404.10102": (1.8172, 482.01, 0.3478, 2085.43, 0.3658),
}
FIT_BYTES = 4.4  # bytes of a token there (MassiveText, 32,000 tokens; about)
FIT_RANGE = (44e6, 16e9)  # weights of the smallest and largest model that was fitted


@dataclass(frozen=True)
class Speed:
    """Measured on this machine: seconds of a whole step, peak bytes of this process (of the device on CUDA), FLOPs a
    second of a matrix product before and after."""

    step_seconds: float
    memory: float
    product_flops: float


@dataclass(frozen=True)
class Forecast:
    """What a run will take. Bits per byte are of the corpus's text, with the low and high end of what to expect; None
    where no rule says them: of a run that goes on from a base, or does not learn to go on from the past.

    Attributes:
        extrapolated: the model is smaller or larger than those that the rule was fitted to.
    """

    steps: int
    tokens: int
    parameters: int
    flops: float
    step_seconds: float
    tokens_per_second: float
    memory: float
    hours: float
    usd: float
    product_flops: float
    bits_per_byte: float | None
    bits_per_byte_low: float | None
    bits_per_byte_high: float | None
    extrapolated: bool

    def as_dict(self) -> dict[str, Any]:
        """As the ledger and run.json keep it."""
        return asdict(self)


def forecast(
    config: PretrainConfig,
    model: ModelConfig,
    corpus: CorpusFacts,
    speed: Speed,
    usd_per_hour: float,
    world: int = 1,
) -> Forecast:
    """Puts together what was measured and what the rules say; `world` ranks share a step."""
    tokens = config.steps * config.rows * config.sequence
    # forward passes over what a validation reads, by each rank: the run's own objectives, and bits per byte where there
    # are some; a step is three
    passes = 2 if learns_causally(config, model) else 1
    looked = world * passes * validated_tokens(config, corpus.held_back) / (config.rows * config.sequence)
    hours = (config.steps + looked / 3) * speed.step_seconds / 3600
    middle: float | None = None
    low: float | None = None
    high: float | None = None
    if config.base is None and learns_causally(config, model):
        fresh = min(tokens, 16 * corpus.tokens)  # beyond, repeating teaches nothing (2305.16264)
        bits = expected_bits(model, fresh * corpus.bytes_per_token / FIT_BYTES)
        untrained = math.log2(corpus.vocab_size) / max(1e-9, corpus.bytes_per_token)
        middle, low, high = (min(one, untrained) for one in bits)
    return Forecast(
        steps=config.steps,
        tokens=tokens,
        parameters=model.parameters,
        flops=tokens * train_flops(model),
        step_seconds=speed.step_seconds,
        tokens_per_second=config.rows * config.sequence / speed.step_seconds,
        memory=speed.memory,
        hours=hours,
        usd=hours * usd_per_hour,
        product_flops=speed.product_flops,
        bits_per_byte=middle,
        bits_per_byte_low=low,
        bits_per_byte_high=high,
        extrapolated=not FIT_RANGE[0] <= model.parameters <= FIT_RANGE[1],
    )


def validated_tokens(config: PretrainConfig, held_back: int) -> int:
    """Tokens that all validations of a run read."""
    watch = config.watch
    times = -(-config.steps // watch.validate) if watch.validate else 1  # the last step is always looked at
    times += config.base is not None  # and a base before the first
    return times * min(watch.validation_tokens or held_back, held_back)


def expected_bits(model: ModelConfig, tokens: float) -> tuple[float, float, float]:
    """Bits per byte to expect of web-like English after so many tokens of `FIT_BYTES`, and the ends of a range. Of a
    mixture, what its active weights would reach by themselves.

    The middle is the mean of the two fits, turned into bits per byte by the size of their tokens. The range goes from
    the lower fit to the higher one, 15 % wider each way: other texts differ that much (code and dialogue are easier,
    encyclopaedias harder), and this is no interval in a statistical sense.
    """
    bits = [
        (e + a / model.active_parameters**alpha + b / tokens**beta) / math.log(2) / FIT_BYTES
        for e, a, alpha, b, beta in FITS.values()
    ]
    return statistics.fmean(bits), 0.85 * min(bits), 1.15 * max(bits)


def measure(trainer: Trainer, warm: int = 2, least: int = 3, seconds: float = 2.0) -> Speed:
    """Times whole steps of a trainer that is thrown away afterwards: it does make them.

    Args:
        warm: steps that are not timed. least: steps that are; more, until about so many `seconds` have passed.
    """
    import torch.distributed.checkpoint  # noqa: F401  (the run will hold it in memory, too)

    for _ in range(warm):
        trainer.step()
    before = product_flops(trainer.place.device, trainer.number)
    taken: list[float] = []
    while len(taken) < least or (trainer.place.agree(sum(taken)) < seconds and len(taken) < 30):
        started = time.perf_counter()
        trainer.step()
        wait(trainer.place.device)
        taken.append(time.perf_counter() - started)
    after = product_flops(trainer.place.device, trainer.number)
    return Speed(statistics.median(taken), peak_memory(trainer.place.device), (before + after) / 2)


def product_flops(
    device: torch.device, number: torch.dtype = torch.float32, size: int = 1024, repeats: int = 7
) -> float:
    """FLOPs a second of a product of two square matrices, the median of several."""
    x, y = (torch.randn(size, size, device=device).to(number) for _ in range(2))
    taken = []
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        x @ y
        wait(device)
        taken.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(taken[1:])


def peak(device: torch.device, number: torch.dtype) -> float | None:
    """FLOPs a second that this device can reach at most: from its data sheet, on a CPU the fastest product that was
    measured, else None."""
    if device.type == "cuda":
        if number != torch.bfloat16:
            return None
        name = torch.cuda.get_device_name(device)
        return next((flops for part, flops in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    if device.type == "cpu":
        return max(product_flops(device, number, size) for size in (1024, 2048))
    return None


def peak_memory(device: torch.device) -> float:
    """Most bytes held so far: by torch on a CUDA device, else by this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compiler_there(device: torch.device) -> bool:
    """Whether torch.compile can work here: Triton for CUDA, a C++ compiler for a CPU."""
    if device.type == "cuda":
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def choose_number(wanted: str, device: torch.device, probe: Callable[[torch.device], torch.dtype]) -> str:
    """ "float32" or "bfloat16": as wanted, or what `probe` finds to be faster."""
    return str(probe(device)).removeprefix("torch.") if wanted == "auto" else wanted


def choose_compile(wanted: str, device: torch.device, seconds: float) -> bool:
    """Whether blocks are compiled: as wanted; "auto" compiles on CUDA where a compiler exists and the run is long
    enough to win its minute back. On a CPU it does not: what remains beside attention, which runs outside of what is
    compiled there, is matrix products for the most part; a minute or two wins 5 %.

    Raises:
        PandoError: it is wanted and there is no compiler.
    """
    if wanted == "on" and not compiler_there(device):
        raise PandoError("machine.compile is on, but there is no compiler here (g++, or Triton for CUDA)")
    if wanted != "auto":
        return wanted == "on"
    return device.type == "cuda" and compiler_there(device) and seconds > 600
