"""The main job end to end: a task from real tweets, the ladder, the chosen skin served and asked, the ledger.

    make demo

Everything is kept in .cache/demo; a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tweets

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(".cache", "demo")  # below ROOT, where everything runs
PANDO = [sys.executable, "-m", "pando"]
BASE = "smollm2-135m"
QUESTIONS = (
    "Best concert of my life, I am still smiling!",
    "Train cancelled again, two hours late and nobody says a word.",
)


def main() -> None:
    start = time.monotonic()
    step("The base model")
    pando("pull", BASE)

    step("A task: is the mood of a tweet positive or negative?")
    task = WORK / "task" / "task.yaml"
    tweets.build(ROOT / task.parent, train=600, test=400)
    print((ROOT / task).read_text(encoding="utf-8").strip())
    pando("task", "check", task)

    step("The ladder: every rung is measured, then one is chosen")
    out = WORK / "ladder"
    pando("adapt", task, "--base", BASE, "--out", out)
    report = json.loads((ROOT / out / "report.json").read_text(encoding="utf-8"))
    print(f"The whole report, to open in a browser: {out / 'report.html'}")
    if not report["chosen"]:
        sys.exit("No rung passed, so there is nothing to serve.")

    step(f"Served as OpenAI does: the base and the chosen skin ({report['chosen']}) in one process")
    with served(out) as url:
        ask(url)

    step("What it cost")
    pando("ledger", "--by", "kind")
    print(f"\nAll of this took {(time.monotonic() - start) / 60:.1f} minutes.")


def step(title: str) -> None:
    print(f"\n── {title}", flush=True)


def pando(*arguments: str | Path) -> None:
    """Runs a pando command, its output shown; ends the demo with its exit code if it fails."""
    print("$ pando " + " ".join(str(one) for one in arguments), flush=True)
    done = subprocess.run([*PANDO, *map(str, arguments)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


@contextlib.contextmanager
def served(skins: Path) -> Iterator[str]:
    """`pando serve` on a free loopback port while the context lasts; yields its URL."""
    command = ["serve", BASE, "--skins", str(skins), "--port", "0"]
    print("$ pando " + " ".join(command), flush=True)
    server = subprocess.Popen([*PANDO, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        said = server.stdout.readline().strip()  # comes once it is ready
        print(said, flush=True)
        if not said:
            sys.exit(server.wait() or 1)
        yield said.split()[-1]
    finally:
        server.terminate()
        server.wait()


def ask(url: str) -> None:
    """Two questions with the official client, to the first model that is not the base."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")
    base, *skins = [model.id for model in client.models.list()]
    print(f"models: {', '.join([base, *skins])}")
    for question in QUESTIONS:
        begin = time.perf_counter()
        reply = client.chat.completions.create(model=skins[0], messages=[{"role": "user", "content": question}])
        taken = 1000 * (time.perf_counter() - begin)
        print(f'  "{question}"\n      {reply.choices[0].message.content}  ({taken:.0f} ms)')


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        sys.exit()
    sys.exit(130)
