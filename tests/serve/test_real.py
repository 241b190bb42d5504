"""The server on the real base, in a process of its own, through the official client: a short run of check_openai."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "verify" / "check_openai.py"
PARTS = ("models", "chat", "echo", "embeddings", "errors", "skins", "leaving", "accounts")


@pytest.mark.real
@pytest.mark.slow
def test_the_official_client_on_the_real_base() -> None:
    done = subprocess.run([sys.executable, str(CHECK), *PARTS], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(PARTS)} of {len(PARTS)} parts hold"
