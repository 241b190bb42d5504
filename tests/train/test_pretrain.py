"""Whole runs: batches however they are cut, going on after a stop or a kill, damage, another number of ranks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pando.errors import PandoError
from pando.model.base import open_base
from pando.train import checkpoint
from pando.train.config import build
from pando.train.configfile import read_config
from pando.train.dial import model_config
from pando.train.log import losses, read_log
from pando.train.loop import Outcome, pretrain
from pando.train.parallel import Place, joined
from pando.train.prepare import Money, foresee, prepare
from pando.train.record import claim, note_billed
from pando.train.shards import Shards, open_shards
from pando.train.trainer import Trainer
from tests.train.corpus import sentences, write_texts
from tests.train.runs import interrupted

HERE = Path(__file__).resolve()
FREE = Money(0.1)
CONFIG = """\
model: {family: llama, depth: 2, width: 32, hidden: 64, heads: 2, kv_heads: 1, head_dim: 16, context: 64}
sequence: 32
batch: 256
tokens: 3072
optim: {matrix_rate: 0.005, rate: 0.01}
machine: {number: float32}
keep: {steps: 4, minutes: 0}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(write_texts(tmp_path_factory.mktemp("corpus"), sentences(300)))


@pytest.fixture(autouse=True)
def unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a second need no forecast and no peak; those have tests of their own."""
    if "plan" not in request.node.name:
        monkeypatch.setattr("pando.train.loop.foresee", lambda *_: _Nothing())
        monkeypatch.setattr("pando.train.plan.peak", lambda *_: None)


class _Nothing:
    def as_dict(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pretrain.yaml"
    path.write_text(CONFIG)
    return path


def _run(config: Path, shards: Shards, folder: Path, **options: Any) -> Outcome:
    with joined("cpu") as place:
        return pretrain(config, shards, folder, place, FREE, quiet=True, **options)


def _losses(folder: Path) -> list[tuple[int, float]]:
    return list(losses(read_log(folder / "log.jsonl")))


def _trainer(shards: Shards, place: Place, **changes: Any) -> Trainer:
    values = {**build_values(), **changes}
    made = build(values)
    return Trainer(made, model_config(made, shards.vocab_size), shards, place)


def build_values() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for name, value in yaml.safe_load(CONFIG).items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def test_a_run_learns_and_leaves_a_base_that_opens(config: Path, shards: Shards, tmp_path: Path) -> None:
    said = []

    class Hooks:
        def samples(self, model: nn.Module, config: Any) -> list[str]:
            said.append(sum(p.numel() for p in model.parameters()))
            return ["a sample"]

        def evaluate(self, model: nn.Module, config: Any) -> dict[str, float]:
            return {"pairs": 0.5}

    done = _run(config, shards, tmp_path / "run", hooks=Hooks())
    assert done.finished and done.steps == 12 and done.tokens == 12 * 256 and done.unbilled == done.seconds > 0
    found = [loss for _, loss in _losses(tmp_path / "run")]
    assert len(found) == 12 and found[-1] < found[0] - 0.3
    base = open_base(tmp_path / "run" / "model")
    assert said == [base.config.parameters] and base.tokenizer.vocab_size <= base.config.vocab_size
    kinds = [record["kind"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert kinds.count("checkpoint") == 3 and kinds[-1] == "end"
    assert {"validation", "sample", "evaluation"} <= set(kinds)
    with pytest.raises(PandoError, match="holds a run already: add --resume"):
        _run(config, shards, tmp_path / "run")
    again = _run(config, shards, tmp_path / "run", resume=True)
    assert again.finished and again.session_tokens == 0 and again.unbilled > 0.5 * done.seconds  # nobody noted a bill
    note_billed(again)
    billed = _run(config, shards, tmp_path / "run", resume=True)
    assert billed.closed and billed.unbilled_tokens == 0 and billed.unbilled < 0.5 * done.seconds
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(PandoError, match=r"checkpoints of the run in .* are gone"):
        _run(config, shards, tmp_path / "run", resume=True)


def test_a_run_by_size_and_budget_is_gone_on_with(config: Path, shards: Shards, tmp_path: Path) -> None:
    tokens = next(line for line in CONFIG.splitlines() if line.startswith("tokens:"))
    config.write_text(CONFIG.replace(tokens, "size: 20k\nbudget: {hours: 0.0005}"))
    done = _run(config, shards, tmp_path / "run")
    assert done.finished
    assert _run(config, shards, tmp_path / "run", resume=True).session_tokens == 0
    config.write_text(CONFIG.replace(tokens, "size: 20k\nbudget: {hours: 0.001}"))
    with pytest.raises(PandoError, match=r"budget\.hours: changed since the run"):
        _run(config, shards, tmp_path / "run", resume=True)


def test_the_loss_is_the_same_however_a_batch_is_cut(shards: Shards) -> None:
    """8 x 1 and 1 x 8 rows; the gradients, too, which the second loss shows."""
    with joined("cpu") as place:
        whole, single = (_trainer(shards, place, **{"machine.micro_rows": rows}) for rows in (8, 1))
        for _ in range(3):
            torch.testing.assert_close(whole.step().numbers, single.step().numbers, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(shards: Shards) -> None:
    """The mean over targets of a few documents is the same packed in one batch and one row at a time with padding."""
    from pando.train.loss import batch_loss
    from pando.train.stream import whole_batches

    with joined("cpu") as place:
        trainer = _trainer(shards, place)
        documents = [shards.documents("train")[i] for i in range(12)]
        sums = []
        for parts in ([documents], [[one] for one in documents]):
            total = weight = 0.0
            for part in parts:
                for batch in whole_batches(part, trainer.mixture, 64, 4, shards.end):
                    loss = batch_loss(trainer.model, batch)
                    total, weight = total + float(loss.total.detach()), weight + float(loss.weight)
            sums.append(total / weight)
        assert sums[0] == pytest.approx(sums[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_stopped_and_gone_on_is_bitwise_the_unbroken_run(
    config: Path, shards: Shards, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(config.read_text().replace("optim: {", f"optim: {{kind: {kind}, "))
    _run(config, shards, tmp_path / "whole")
    broken = tmp_path / "broken"
    interrupted(monkeypatch, at=6, run=lambda: _run(config, shards, broken))
    assert checkpoint.newest(broken / "checkpoints").name == "step-00000004"  # type: ignore[union-attr]
    torch.rand(7)  # a process that was started anew has other generators
    _run(config, shards, broken, resume=True)
    assert _losses(broken) == _losses(tmp_path / "whole")
    for one, other in zip(
        *(open_base(f / "model").module().parameters() for f in (broken, tmp_path / "whole")), strict=True
    ):
        assert torch.equal(one, other)


def test_a_changed_corpus_or_config_is_one_line(config: Path, shards: Shards, tmp_path: Path) -> None:
    _run(config, shards, tmp_path / "run")
    other = open_shards(write_texts(tmp_path / "other", sentences(300, seed=1)))
    with pytest.raises(PandoError, match="is not the corpus of the run"):
        _run(config, other, tmp_path / "run", resume=True)
    before = config.read_text()
    config.write_text(before.replace("rate: 0.01", "rate: 0.02"))
    with pytest.raises(PandoError, match=r"pretrain.yaml:\d+: optim.rate: changed .*0.01, now 0.02.*; set it back"):
        _run(config, shards, tmp_path / "run", resume=True)
    config.write_text(before.replace("keep: {steps: 4", "keep: {steps: 3, last: 5") + "watch: {validate: 3}\n")
    assert _run(config, shards, tmp_path / "run", resume=True).finished


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("log.jsonl", None, r"log\.jsonl:4 is damaged: take the line out"),
        ("log.jsonl", b'{"kind": "start", "step": 0}\n\xff\xff\n', r"log\.jsonl is damaged .* take the line out"),
        ("billed.json", b"", r"billed\.json is damaged: remove it"),
        ("run.json", b'{"format_version": 1}', r"run\.json is damaged .corpus and given missing.: name another folder"),
    ],
)
def test_a_damaged_record_is_one_line(
    config: Path, shards: Shards, tmp_path: Path, name: str, data: bytes | None, said: str
) -> None:
    from pando.train.runs import read_runs

    outcome = _run(config, shards, tmp_path / "run")
    note_billed(outcome)
    file = tmp_path / "run" / name
    if data is None:
        lines = file.read_bytes().splitlines(keepends=True)
        data = b"".join([*lines[:3], lines[3][:9] + b"\n", *lines[4:]])
    file.write_bytes(data)
    with pytest.raises(PandoError, match=said):
        _run(config, shards, tmp_path / "run", resume=True)
    if name != "billed.json":
        with pytest.raises(PandoError, match=said):
            read_runs([tmp_path / "run"])


def test_a_tokenizer_that_no_base_could_have_is_told_at_once(config: Path, shards: Shards, tmp_path: Path) -> None:
    shutil.copytree(shards.folder, tmp_path / "corpus")
    (tmp_path / "corpus" / "tokenizer_config.json").write_text("{")
    with pytest.raises(PandoError, match=r"tokenizer of .*corpus cannot be used: .*; build the corpus again"):
        _run(config, open_shards(tmp_path / "corpus"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "facts", "bare"])
def test_a_damaged_checkpoint_is_named_with_the_one_to_go_on_from(
    config: Path, shards: Shards, tmp_path: Path, damage: str
) -> None:
    _run(config, shards, tmp_path / "run")
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    file = newest / (checkpoint.FACTS if damage == "facts" else "__0_0.distcp")
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "bare":
        (newest / checkpoint.FACTS).write_text('{"format_version": 1, "files": {}}')
    elif damage == "changed":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(PandoError, match=r"step-00000012.* is missing or damaged: remove .* go on from step-00000008"):
        _run(config, shards, tmp_path / "run", resume=True)
    shutil.rmtree(newest)
    assert _run(config, shards, tmp_path / "run", resume=True).session_tokens == 4 * 256


def test_a_full_disk_is_one_line_and_keeps_the_older_checkpoint(
    config: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    count = 0

    def full(descriptor: int) -> None:
        nonlocal count
        if "distcp" in os.readlink(f"/proc/self/fd/{descriptor}"):
            count += 1
            if count == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PandoError, match=r"disk is full; make room; step-00000004 is kept, go on from it"):
            _run(config, shards, tmp_path / "run")
    assert [path.name for path in checkpoint.whole(tmp_path / "run" / "checkpoints")] == ["step-00000004"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))
    assert _run(config, shards, tmp_path / "run", resume=True).finished


def test_old_checkpoints_are_retired(config: Path, shards: Shards, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("steps: 4", "steps: 1, last: 2, every: 5"))
    _run(config, shards, tmp_path / "run")
    names = [path.name[-2:] for path in checkpoint.whole(tmp_path / "run" / "checkpoints")]
    assert names == ["05", "10", "11", "12"]
    config.write_text(config.read_text().replace("steps: 1, last: 2", "steps: 0, last: 1"))
    _run(config, shards, tmp_path / "sparse")  # those that are kept are written, whatever else is due
    assert [path.name[-2:] for path in checkpoint.whole(tmp_path / "sparse" / "checkpoints")] == ["05", "10", "12"]


def test_a_checkpoint_of_another_python_is_read() -> None:
    """Python 3.13 calls the home of its paths by another name."""
    import io
    import pickle
    from pathlib import PosixPath

    written = pickle.dumps(PosixPath("a"), protocol=0).replace(b"cpathlib\n", b"cpathlib._local\n")
    assert b"_local" in written and checkpoint._Contents(io.BytesIO(written)).load() == PosixPath("a")


def test_a_folder_of_something_else_is_left_alone(config: Path, shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(PandoError, match="holds something else"):
        _run(config, shards, tmp_path)
    assert config.read_text() == CONFIG


def test_one_process_at_a_time_has_a_run(config: Path, shards: Shards, tmp_path: Path) -> None:
    _run(config, shards, tmp_path / "run")
    with claim(tmp_path / "run"), pytest.raises(PandoError, match="another process is training in"):
        _run(config, shards, tmp_path / "run", resume=True)
    assert _run(config, shards, tmp_path / "run", resume=True).finished


def test_each_session_costs_what_its_machines_do(
    config: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def session(price: float, **options: Any) -> Outcome:
        with joined("cpu") as place:
            return pretrain(config, shards, tmp_path / "run", place, Money(price), quiet=True, **options)

    interrupted(monkeypatch, 6, lambda: session(3600.0))
    kept = checkpoint.facts(checkpoint.newest(tmp_path / "run" / "checkpoints") or tmp_path)
    assert kept["usd"] == pytest.approx(kept["seconds"])
    done = session(0.0, resume=True)
    assert done.usd == pytest.approx(kept["usd"]) and done.unbilled_usd == done.usd
    assert done.seconds > kept["seconds"]


def test_samples_that_fail_cost_no_step(config: Path, shards: Shards, tmp_path: Path) -> None:
    class Broken:
        def samples(self, *_: Any) -> list[str]:
            raise MemoryError

        def evaluate(self, *_: Any) -> dict[str, float]:
            return {}

    config.write_text(config.read_text().replace("steps: 4", "steps: 0"))
    with pytest.raises(MemoryError):
        _run(config, shards, tmp_path / "run", hooks=Broken())
    again = _run(config, shards, tmp_path / "run", resume=True, hooks=Broken())
    assert again.finished and again.session_tokens == 0


def test_a_table_of_contents_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(PandoError, match="system"):
        checkpoint.load(tmp_path, {"a": torch.zeros(2)}, Place(0, 1, torch.device("cpu")))


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(PandoError, match=r"set machine\.micro_rows"), joined("cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(PandoError, match="memory of the machine does not suffice"), joined("cpu"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), joined("cpu"):
        raise RuntimeError("another")


def test_a_spike_is_skipped_and_the_run_goes_on(shards: Shards) -> None:
    with joined("cpu") as place:
        trainer = _trainer(shards, place, **{"optim.spike_window": 6})
        for _ in range(5):
            assert trainer.step().read()["kept"]
        before = [p.clone() for p in trainer.model.parameters()]
        with torch.no_grad():
            kept = trainer.model.norm.weight.clone()
            trainer.model.norm.weight.fill_(float("nan"))
        assert not trainer.step().read()["kept"]
        with torch.no_grad():
            trainer.model.norm.weight.copy_(kept)
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
        assert trainer.step().read()["kept"]


def test_a_plan_says_what_the_run_will_take(config: Path, shards: Shards) -> None:
    with joined("cpu") as place:
        resolved = prepare(read_config(config), shards, place, Money(36.0))
        said = foresee(resolved.config, shards, place, Money(36.0))
    looked = 2 / 3 * shards.documents("validation").tokens / (said.tokens / 12)  # in steps' worth of tokens
    assert said.steps == 12 and said.usd == pytest.approx((12 + looked) * said.step_seconds / 100)
    assert said.memory > 1e8 and said.bits_per_byte_low <= said.bits_per_byte <= said.bits_per_byte_high


@pytest.mark.slow
def test_killed_and_gone_on_and_on_two_ranks(config: Path, shards: Shards, tmp_path: Path) -> None:
    """The command itself: a SIGKILL in the middle, then 1 -> 2 -> 1 ranks with the same order of samples."""
    config.write_text(config.read_text().replace("tokens: 3072", "tokens: 7680"))
    whole = tmp_path / "whole"
    _run(config, shards, whole)
    out = tmp_path / "killed"
    arguments = ["pretrain", str(config), "--corpus", str(shards.folder), "--out", str(out), "--resume"]
    environment = {**os.environ, "PANDO_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "pando", *arguments], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(_losses(out)) < 6:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = _losses(out)
    assert found == _losses(whole)[: len(found)] and len(found) >= 6
    cut = tmp_path / "ranks"
    shutil.copytree(out, cut)
    arguments[5] = str(cut)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "pando"]
    done = subprocess.run([*launch, *arguments, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    assert together["finished"]
    apart = [abs(a - b) for (_, a), (_, b) in zip(_losses(cut), _losses(whole), strict=True)]
    changed = len(found) // 4 * 4
    assert max(apart[: changed + 1]) <= 1e-6 and max(apart[: changed + 20]) <= 1e-4
