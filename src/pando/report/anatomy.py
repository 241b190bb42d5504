"""A base as a picture in text, and two of them compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ORDERS = {
    "pre": ("norm", "attention", "", "norm", "feed-forward", ""),
    "post": ("", "attention", "norm", "", "feed-forward", "norm"),
    "sandwich": ("norm", "attention", "norm", "norm", "feed-forward", "norm"),
    "parallel": ("norm", "attention", "", "norm", "feed-forward", ""),
    "after": ("", "attention", "sum → norm", "", "feed-forward", "sum → norm"),
}
_LIKE = 0.02  # sizes that differ by less are called alike


def picture(facts: Mapping[str, Any]) -> list[str]:
    """The lines of `pando show`."""
    parameters, memory = facts["parameters"], facts["memory"]
    lines = [f"{facts['name']}: {facts['family']}", ""]
    lines.append(f"  {facts['vocab_size']:,} tokens → vectors of {facts['d_model']:,}")
    encoder = facts["encoder"]
    if encoder is not None:
        lines.append("  the encoder, which reads the input:")
        for block in encoder["blocks"]:
            lines += _block(block, encoder["layers"])
        lines.append("  the decoder, which writes the answer:")
    for block in facts["blocks"]:
        lines += _block(block, facts["layers"])
    head = "the embedding again" if facts["tied"] else "a matrix of its own"
    lines += [f"  {facts['vocab_size']:,} logits by {head}" if facts["predicts"] else "  hidden states, no logits", ""]
    total = amount(parameters["total"])
    if parameters["active"] != parameters["total"]:
        total += f", {amount(parameters['active'])} active for a token"
    rows = [
        ("parameters", total),
        *([("FLOPs read", _flops(encoder))] if encoder is not None else []),
        ("FLOPs" if encoder is None else "FLOPs written", _flops(facts)),
        *([("cache", _cache(facts))] if facts["kv_bytes_per_token"] else []),
        ("weights", ", ".join(f"{size(held)} in {dtype}" for dtype, held in memory.items())),
        ("context", f"{facts['context_length']:,} tokens"),
        *((f"can {verb}", ", ".join(ways)) for verb, ways in facts["can"].items()),
    ]
    return lines + [f"  {name:<15}{text}" for name, text in rows]


def _flops(facts: Mapping[str, Any]) -> str:
    full = facts["flops_per_token"] + facts["attention_flops_per_token"]
    return f"{amount(facts['flops_per_token'])} a token, {amount(full)} where the context is full"


def _cache(facts: Mapping[str, Any]) -> str:
    full, encoder = size(facts["kv_bytes_at_context"]), facts["encoder"]
    read = "" if encoder is None else f", {encoder['kv_bytes_per_token']:,} bytes a token read"
    return f"{facts['kv_bytes_per_token']:,} bytes a token in bfloat16, {full} where the context is full{read}"


def _block(block: Mapping[str, Any], depth: int) -> list[str]:
    numbers = block["layers"]
    which = f"{len(numbers)} blocks" if len(numbers) == depth else f"{_ranges(numbers)} of {depth} blocks"
    before, _, after, before_mlp, _, after_mlp = _ORDERS[block["order"]]
    side = ", side by side" if block["order"] == "parallel" else ""
    lines = [f"  ┌ {which}{side}"]
    for first, name, last, words in (
        (before, "attention", after, block["attention"]),
        (before_mlp, "feed-forward", after_mlp, block["mlp"]),
    ):
        way = " → ".join(part for part in (first, name, last) if part)
        lines.append(f"  │ + {way}: {words}")
    return [*lines, "  └"]


def _ranges(numbers: Sequence[int]) -> str:
    """0-2, 4, 6-7; long lists of single ones are cut."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    shown = ", ".join(words if len(words) <= 6 else [*words[:3], "...", words[-1]])
    return f"{shown} ({len(numbers)})" if len(numbers) > 1 else shown


def compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which of two bases is cheaper to hold and which to run, a sentence each. A token that is read costs as much as
    one that is written, except where an encoder reads it."""
    both = (one, other)
    names = [facts["name"] for facts in both]
    unit, run = "FLOPs a token", [facts["flops_per_token"] for facts in both]
    if any(facts["encoder"] is not None for facts in both):
        unit = "FLOPs for a token read and one written"
        run = [facts["flops_per_token"] + (facts["encoder"] or facts)["flops_per_token"] for facts in both]
    return [
        _sentence("hold", names, [facts["memory"]["bfloat16"] for facts in both], "weights in bfloat16", size),
        _sentence("run", names, run, unit, amount),
    ]


def _sentence(what: str, names: Sequence[str], costs: Sequence[float], unit: str, said: Callable[[float], str]) -> str:
    numbers = f"{unit}: {names[0]} {said(costs[0])}, {names[1]} {said(costs[1])}"
    if max(costs) <= (1 + _LIKE) * min(costs):
        return f"{names[0]} and {names[1]} cost the same to {what} ({numbers})."
    cheaper = 0 if costs[0] < costs[1] else 1
    return f"{names[cheaper]} is {max(costs) / min(costs):.3g} times cheaper to {what} ({numbers})."


def amount(count: float) -> str:
    """1,234 -> 1.23 thousand; also million, billion, trillion; three digits."""
    for unit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{_digits(count / unit)} {word}"
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Bytes in KB, MB, GB or TB of a thousand each."""
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{_digits(count / unit)} {word}"
    return f"{count:,.0f} bytes"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
