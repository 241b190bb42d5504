"""LoRA training, tokens a second at the same loss curve: our trainer against TRL's SFTTrainer over PEFT.

    python bench/lora.py [--quick] [--repeats 3] [--record]

Both train rank 16 (alpha 32, all linear layers, answer-only loss) once over the same tweets, rendered by our LoRA rung,
from the same first adapter with the same learning rates; unless TRL is fastest packed, on the same batches in the same
order, so that every step's loss can be compared. TRL runs in the fastest of {float32, bfloat16 weights, bfloat16
autocast} x {packed, grouped by length} x batches of {4, 8, 16}, found by short probes, without gradient checkpointing;
ours takes the same batch. Every run is a process of its own, and its peak memory is that of the process.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from _common import Ratio, alternate, arguments, machine, need, report, spread, start, today, versions
from _tuning import ALPHA, RANK, Plan, Run, prepare, run

ROWS, PROBED = 480, 64
NUMBERS, BATCHES = ("float32", "bfloat16", "autocast"), (4, 8, 16)
TARGET = 1.3
SAME_LOSS = 0.03  # nats, over the last third of the steps


def probe(plans: Sequence[Plan]) -> dict[Plan, Run]:
    """Short runs of the peer."""
    found = {}
    for plan in plans:
        found[plan] = run(plan)
        print(f"   probe: TRL, {plan}: {found[plan]}", flush=True)
    return found


def last_third(found: Run) -> float:
    """Mean loss of the last third of the steps, weighted by their rows."""
    start = len(found.losses) * 2 // 3
    weights = found.rows_by_step[start:]
    return sum(loss * n for loss, n in zip(found.losses[start:], weights, strict=True)) / sum(weights)


def main() -> int:
    asked = arguments(__doc__)
    need("trl", "peft", "transformers", "datasets")
    from pando.model.base import open_base

    open_base()  # ends with one line where there is none
    count, probed = (24, 16) if asked.quick else (ROWS, PROBED)
    prepare(count)
    plans = [
        Plan("trl", batch, numbers, packed, probed)
        for numbers in (NUMBERS[1:2] if asked.quick else NUMBERS)
        for packed in (False, True)
        for batch in (BATCHES[1:2] if asked.quick else BATCHES)
    ]
    probes = probe(plans)
    best = replace(max(plans, key=lambda plan: probes[plan].speed), rows=count)
    mine = Plan("pando", best.batch, rows=count)
    runs = alternate({"pando": partial(run, mine), "trl": partial(run, best)}, asked.repeats)
    curve = run(replace(best, packed=False)) if best.packed else runs["trl"][0]
    raw = judged(runs, curve)
    raw |= {"best": asdict(best), "probes": {str(plan): asdict(found) for plan, found in probes.items()}}
    report("lora", "LoRA training", section(runs, curve, raw, mine, best, probes), raw, asked.record)
    return int(not raw["holds"])


def judged(runs: dict[str, list[Run]], curve: Run) -> dict[str, Any]:
    """The claim's numbers, and whether it holds; `curve` is TRL's run on our very batches."""
    ratio = Ratio.of(*([one.speed for one in runs[side]] for side in ("pando", "trl")))
    peaks = {side: statistics.median(one.peak for one in found) for side, found in runs.items()}
    ours = runs["pando"][0]
    apart = abs(last_third(ours) - last_third(curve))
    steps = statistics.mean(abs(a - b) for a, b in zip(ours.losses, curve.losses, strict=True))
    holds = ratio.median >= TARGET and peaks["pando"] <= peaks["trl"] and apart <= SAME_LOSS
    raw: dict[str, Any] = {"holds": holds, "ratio": ratio.median, "ratio_text": str(ratio), "target": TARGET}
    raw |= {"peaks": peaks, "apart": apart, "steps_apart": steps, "curve": asdict(curve)}
    return raw | {"runs": {side: [asdict(one) for one in found] for side, found in runs.items()}}


def section(
    runs: dict[str, list[Run]], curve: Run, raw: dict[str, Any], mine: Plan, best: Plan, probes: dict[Plan, Run]
) -> list[str]:
    """The results in words."""
    ours, theirs = runs["pando"][0], runs["trl"][0]
    rows = [
        f"| {name} | {spread([one.speed for one in runs[side]], '', 0)} | {raw['peaks'][side]:,.0f} MiB | "
        f"{last_third(runs[side][0]):.3f} |"
        for side, name in (("pando", f"pando ({ours.numbers}, batch {mine.batch})"), ("trl", f"TRL + PEFT ({best})"))
    ]
    tried = "; ".join(f"{plan} {found.speed:.0f}" for plan, found in probes.items())
    return [
        f"One pass over {mine.rows} tweets ({ours.tokens:,} tokens timed), SmolLM2-135M-Instruct, rank {RANK}, alpha "
        f"{ALPHA}, all linear layers, answer-only loss. Median of {len(runs['trl'])} alternating runs:",
        "",
        "| | tokens a second | peak memory | loss, last third |",
        "| --- | --- | --- | --- |",
        *rows,
        f"| **ratio** (target {TARGET:g}x, no more memory) | **{raw['ratio_text']}** | "
        f"{raw['peaks']['pando'] / raw['peaks']['trl']:.2f} | |",
        "",
        f"On the same batches in the same order from the same first adapter, TRL's loss over the last third is "
        f"{last_third(curve):.3f}, {raw['apart']:.3f} from ours (at most {SAME_LOSS:g}); single steps are "
        f"{raw['steps_apart']:.3f} apart on average. Tokens computed for each token of a row: {ours.padded:.2f} here "
        f"(what the prompts of a batch share is computed once), {theirs.padded:.2f} there. Memory before the base is "
        f"loaded: {ours.before:.0f} and {theirs.before:.0f} MiB.",
        "",
        f"Probes of the peer on {next(iter(probes)).rows} rows, tokens a second: {tried}.",
        "",
        f"{machine()}; {versions('torch', 'trl', 'peft', 'transformers')}; {today()}.",
    ]


if __name__ == "__main__":
    start(main)
