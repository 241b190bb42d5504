"""`pando serve` on the real base under ten times its load, callers leaving, killed at random: nothing lost or leaked.

Rounds of mixed calls (chat, streams, scores, embeddings, a skin), some of which their callers drop, against a small
queue; then SIGKILLs under load. The ledger's lines are the answers', its seconds the engine's, and memory stays.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving import BASE, KEY, make_skins, serving

SECONDS = 120.0
CALLERS, QUEUE = 40, 4
KILLS = 5
GROWTH = 0.25  # of memory from the first third to the end; the cache's pages count once they were used
SHARE = 0.01  # the ledger's compute may differ from the engine's busy time by this
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 12}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", CHAT),
    "stream": ("chat/completions", CHAT | {"stream": True}),
    "left": ("chat/completions", CHAT | {"stream": True, "max_tokens": 400}),
    "score": ("completions", {"model": BASE, "prompt": "One two three", "echo": True, "logprobs": 1, "max_tokens": 1}),
    "embed": ("embeddings", {"model": BASE, "input": ["a cat", "a dog"]}),
    "skin": ("chat/completions", {"model": "mood", "messages": [{"role": "user", "content": "I love it"}]}),
}


class Callers:
    """Threads that call until told to stop, and what they got whole."""

    def __init__(self, url: str, count: int) -> None:
        self.url = url
        self.answers: list[str] = []
        self.seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=[seed]) for seed in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, seed: int) -> None:
        chance = random.Random(seed)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=120) as client:
            while not self._stop.is_set():
                kind = chance.choice(list(KINDS))
                try:
                    self._one(client, kind)
                except httpx.HTTPError:
                    if self._stop.is_set():
                        return
                    self.seen["broken"] += 1
                    time.sleep(0.1)

    def _one(self, client: httpx.Client, kind: str) -> None:
        route, body = KINDS[kind]
        with client.stream("POST", route, json=body) as answer:
            self.seen[f"{kind} {answer.status_code}"] += 1
            if answer.status_code == 429:
                time.sleep(0.05)
                return
            if kind == "left":
                next(answer.iter_bytes())
                return
            text = answer.read().decode()
        if answer.status_code != 200:
            self.seen[text[:200]] += 1
        elif kind != "stream":
            self.answers.append(json.loads(text)["id"])
        elif text.endswith("data: [DONE]\n\n"):
            self.answers.append(json.loads(text.split("\n", 1)[0].removeprefix("data: "))["id"])


def memory(pid: int) -> int:
    import psutil

    return int(psutil.Process(pid).memory_info().rss)


def gauge(url: str, name: str) -> float:
    text = httpx.get(f"{url.removesuffix('/v1')}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))


def lines() -> dict[str, dict[str, Any]]:
    from pando.ledger import open_ledger

    with open_ledger() as ledger:
        return {line["id"]: line for line in ledger.lines()}


def soak(skins: Path, faults: list[str]) -> str:
    with serving(skins, QUEUE) as (server, url):
        callers = Callers(url, CALLERS)
        time.sleep(SECONDS / 3)
        early = memory(server.pid)
        time.sleep(SECONDS * 2 / 3)
        growth = memory(server.pid) / early - 1
        callers.stop()
        while gauge(url, "pando_calls_under_way"):
            time.sleep(0.1)
        running = gauge(url, "pando_num_requests_running")
        busy = gauge(url, "pando_engine_busy_seconds_total")
        blocks = gauge(url, "pando_kv_cache_usage_perc")
    found = lines()
    compute = sum(line["compute_seconds"] for line in found.values() if line["base"])
    wrong = {what: n for what, n in callers.seen.items() if not what.endswith((" 200", " 429"))}
    refused = sum(n for what, n in callers.seen.items() if what.endswith("429"))
    rules = {
        f"answers other than 200 and 429: {wrong}": not wrong,
        "nobody was told to come back": refused,
        "answers without a line": set(callers.answers) <= set(found),
        "no call was dropped": any(line["detail"]["status"] == "cancelled" for line in found.values()),
        f"memory grew by {growth:.0%}": growth < GROWTH,
        f"{running:g} requests still run": running == 0,
        f"{blocks:.0%} of the cache is still taken": blocks == 0,
        f"the ledger has {compute:.1f} s of the engine's {busy:.1f} s": abs(compute - busy) <= SHARE * busy,
    }
    faults += [fault for fault, holds in rules.items() if not holds]
    return (
        f"{len(callers.answers)} answers and {refused} refusals in {SECONDS:g} s, memory {growth:+.1%}, "
        f"ledger {compute:.1f} of {busy:.1f} busy seconds"
    )


def kills(skins: Path, faults: list[str]) -> str:
    got = lost = 0
    for turn in range(KILLS):
        before = set(lines())
        with serving(skins, 256, clean=False) as (server, url):
            callers = Callers(url, 8)
            while len(callers.answers) < 20:
                time.sleep(0.05)
            time.sleep(random.Random(turn).uniform(0, 1))
            server.send_signal(signal.SIGKILL)
            callers.stop()
        after = set(lines()) - before
        if not set(callers.answers) <= after:
            faults.append(f"kill {turn}: {len(set(callers.answers) - after)} answers without a line")
        got += len(callers.answers)
        lost += len(set(callers.answers) - after)
        print(f"kill {turn + 1}: {len(callers.answers)} answers, {len(after)} lines", flush=True)
    return f"{KILLS} kills, {lost} of {got} answers without a line"


def main() -> int:
    from pando.model.base import open_base

    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PANDO_LEDGER"] = f"sqlite:///{folder}/ledger.sqlite"
        skins = Path(folder, "skins")
        make_skins(skins, open_base(BASE).identity)
        said = [soak(skins, faults)]
        print(said[0], flush=True)
        said.append(kills(skins, faults))
    print("; ".join([*said, *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
