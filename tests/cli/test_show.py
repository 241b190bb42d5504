"""`pando show` as a command: it reads a config alone, and fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 320,
}  # fmt: skip


def show(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pando", "show", *map(str, arguments)], capture_output=True, text=True)


def test_a_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    done = show(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 blocks" in done.stdout and "4 heads of 16" in done.stdout
    found = json.loads(show(tmp_path, "--json").stdout)
    assert found["parameters"] == {"total": 110_912, "active": 110_912, "embedding": 20_480}
    assert {"flops_per_token", "kv_bytes_per_token", "layers", "family"} <= set(found)
    both = show(tmp_path, tmp_path / "config.json")
    assert both.stdout.count("cost the same") == 2


def test_it_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code = (
        "import sys; from pando.model.anatomy import config_of, facts; "
        f"facts(config_of({str(tmp_path)!r})[0], 'x'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mamba"}))
    done = show(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "mamba" in done.stderr
    assert show(tmp_path / "none").returncode == 2
