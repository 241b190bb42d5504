"""`pando doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_INSTRUCTIONS = {  # as the kernel names them: as people do
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "gguf", "huggingface_hub", "llguidance", "scikit-learn")
_FOR_DEVELOPERS = {"dev", "bench"}


def command(
    verify: Annotated[bool, typer.Option(help="Read every pulled base in full and compare its hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine offers and what is missing. Exit code 2 if a pulled base is broken."""
    found = facts(verify)
    print(json.dumps(found, indent=1) if as_json else _words(found))
    if any(base["state"] != "whole" for base in found["bases"]):
        raise typer.Exit(2)


def facts(verify: bool = False) -> dict[str, Any]:
    """Everything the command prints. Sizes are in bytes."""
    from pando import __version__
    from pando.settings import load_settings

    settings = load_settings()
    found = {
        "pando": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "accelerator": _accelerator(),
        "memory": _memory(),
        "disk": {"path": str(settings.home), "free": shutil.disk_usage(_existing(settings.home)).free},
        "places": {
            "bases": str(settings.bases),
            "ledger": re.sub(r"//[^/@]*@", "//***@", settings.ledger_url),
            "settings": str(settings.home / "settings.yaml"),
        },
        "bases": _bases(verify),
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": _extras(),
    }
    return found | {"missing": _missing(found)}


def _processor() -> dict[str, Any]:
    """Name, cores that this process may use, and the instruction sets that matter for matrices."""
    name, flags = platform.processor(), set[str]()
    described = Path("/proc/cpuinfo")
    if described.exists():
        text = described.read_text(encoding="utf-8", errors="replace")
        flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)).split())
        names = re.findall(r"^model name\s*:\s*(.*)$", text, re.M)
        name = names[0] if names else name
    elif sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        name, flags = asked.stdout.strip() or name, {"asimd"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = max(1, min(cores, round(int(quota[0]) / int(quota[1]))))
    known = [words for flag, words in _INSTRUCTIONS.items() if flag in flags]
    return {"name": name or "unknown", "cores": cores, "instructions": known}


def _accelerator() -> dict[str, Any] | None:
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        return {"kind": "cuda", "name": device.name, "memory": device.total_memory, "count": count}
    if torch.backends.mps.is_available():
        return {"kind": "mps", "name": "Apple GPU", "memory": None, "count": 1}
    return None


def _memory() -> dict[str, int]:
    """What this process may use: the machine's, or its container's share."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit.isdecimal() and used.isdecimal():
        total, free = min(total, int(limit)), min(free, int(limit) - int(used))
    return {"total": total, "free": max(free, 0)}


def _cgroup(name: str) -> str:
    path = Path("/sys/fs/cgroup", name)
    return path.read_text().strip() if path.exists() else ""


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _bases(verify: bool) -> list[dict[str, Any]]:
    from pando.errors import PandoError
    from pando.model.base import pulled_bases, pulled_folder
    from pando.model.manifest import NAME, read_manifest
    from pando.model.manifest import verify as check

    found = []
    for name in pulled_bases():
        base: dict[str, Any] = {"name": name, "state": "whole"}
        try:
            manifest = read_manifest(pulled_folder(name) / NAME)
            assert manifest is not None
            size = sum(record.size for record in manifest.files.values())
            base |= {"hash": manifest.identity.hash, "licence": manifest.identity.licence, "size": size}
            check(pulled_folder(name), manifest, full=verify)
        except PandoError as error:
            base["state"] = str(error)
        found.append(base)
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """Extra -> its packages that are not installed. Nothing where Pando itself is not installed but run in place."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("pando-fm") or () if _version("pando-fm") else ():
        match = re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"].*", line)
        if match and match[2] not in _FOR_DEVELOPERS:
            found.setdefault(match[2], []).extend([match[1]] if _version(match[1]) is None else [])
    return found


def _missing(found: dict[str, Any]) -> list[str]:
    """What to do about what is not there, a sentence each."""
    from pando.model.base import DEFAULT

    lines = [base["state"] for base in found["bases"] if base["state"] != "whole"]
    if DEFAULT not in {base["name"] for base in found["bases"]}:
        lines.append(f"the base {DEFAULT} is not here: pando pull {DEFAULT}")
    if found["disk"]["free"] < 2 << 30:
        lines.append(f"only {_bytes(found['disk']['free'])} of disk are free; the default base needs 0.7 GB to unpack")
    if found["memory"]["free"] < 2 << 30:
        lines.append(f"only {_bytes(found['memory']['free'])} of memory are free; the default base needs about 2 GB")
    lines += [f"{name} is not installed" for name, version in found["packages"].items() if version is None]
    return lines


def _words(found: dict[str, Any]) -> str:
    processor, accelerator = found["processor"], found["accelerator"]
    computing = "none; computing runs on the processor in float32"
    if accelerator is not None:
        memory = f", {_bytes(accelerator['memory'])}" if accelerator["memory"] else ""
        computing = f"{accelerator['count']} x {accelerator['name']}{memory}; used by default, in bfloat16"
    rows = [
        ("Pando", f"{found['pando']}, Python {found['python']}, {found['system']}"),
        ("Processor", f"{processor['name']}, {processor['cores']} cores"),
        ("", ", ".join(processor["instructions"]) or "no instruction set for fast matrices found"),
        ("Accelerator", computing),
        ("Memory", f"{_bytes(found['memory']['total'])}, {_bytes(found['memory']['free'])} free"),
        ("Disk", f"{_bytes(found['disk']['free'])} free for {found['disk']['path']} (PANDO_HOME)"),
        *((f"  {name}", place) for name, place in found["places"].items()),
        *(_base_row(base) for base in found["bases"]),
        ("Packages", ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)),
    ]
    for extra, missing in found["extras"].items():
        hint = f"needs {', '.join(missing)}: pip install 'pando-fm[{extra}]'" if missing else "installed"
        rows.append((f"Extra {extra}", hint))
    rows += [("Missing", line) for line in found["missing"] or ["nothing"]]
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def _base_row(base: dict[str, Any]) -> tuple[str, str]:
    if "hash" not in base:
        return "Base", f"{base['name']}: broken"
    state = base["state"] if base["state"] == "whole" else "broken"
    return "Base", f"{base['name']}, {_bytes(base['size'])}, licence {base['licence'] or 'not stated'}, {state}"


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
