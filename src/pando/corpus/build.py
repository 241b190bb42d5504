"""The walk from documents to shards: read, score, decide, tokenise, mix, write. Each step keeps what it finished.

Everything is kept in a folder of its own under the hash of its inputs and settings. The same command after a kill, or
after a change of the corpus file, does only what is missing; the corpus itself appears at the end, in one rename.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pando.corpus import bpe, contamination, engine, near, shards, sources, tokens, work
from pando.corpus.config import Config, Training
from pando.corpus.decide import Decisions, Part, column, decide
from pando.corpus.mixture import Mixed, mix
from pando.corpus.parts import key_of, text_of
from pando.corpus.records import write_ledger
from pando.corpus.words import I64, U64, mixed, mixed_number
from pando.errors import DataError
from pando.files import atomic_dir, atomic_write, content_hash, progress, replaceable

_FILES = ("ledger.parquet", "train-*", "validation-*")
Protected = Iterable[tuple[str, str]]  # (what an item is called, its text)


class Build:
    """One corpus in the making. `build` runs all of it; `pando corpus what-if` and the tokenizer stop earlier."""

    def __init__(self, config: Config, folder: Path, protected: Protected | None = None) -> None:
        """Args:
        folder: where finished steps are kept.
        protected: items of evaluations, for the stage `decontaminate`; read only if the file has that stage.
        """
        self.config, self.folder, self._protected = config, folder.absolute(), protected
        self.protected_items: dict[str, int] = {}

    def parts(self) -> list[Part]:
        """Reads what is new, runs the stages that are missing, and lists all parts in order."""
        read = self._read()
        chains = [self._chain(source.skip) for source in self.config.sources]
        parts, tasks = [], []
        for number, key, rows in read:
            path = str(self.folder / "read" / f"{key}.parquet")
            steps = work.steps(chains[number], key, path, self.folder)
            files = {step["stage"]: step["out"] for step in steps}
            parts.append(Part(number, key, rows, path, files, steps[-1]["reads"], steps[-1]["text_key"]))
            if not all(Path(step["out"]).exists() for step in steps):
                tasks.append({"steps": steps})
        self._run("score", tasks, "scoring parts")
        return parts

    def decide(self, parts: Sequence[Part]) -> Decisions:
        """Which documents stay."""
        return decide(self.config, parts, lambda counted: self._near_groups(parts, counted))

    def tokenizer(self, parts: Sequence[Part], decisions: Decisions | None) -> tokens.Tokenizer:
        """The tokenizer that the file names, or one trained on a sample of the kept documents.

        Raises:
            DataError: it cannot be read, or has no token that ends a document; or no document is kept.
        """
        wanted = self.config.tokenizer
        if decisions is not None and not decisions.kept.any():
            took = Counter(decisions.rule.tolist()).most_common(3)
            listed = ", ".join(f"{'.'.join(decisions.names[rule])} {count:,}" for rule, count in took)
            raise DataError(f"no document is left of {len(decisions.rule):,}; most went by {listed or 'no rule'}")
        if isinstance(wanted, Training):
            assert decisions is not None
            return tokens.described(self._trained(wanted, parts, decisions))
        folder = self.config.path(wanted)
        return tokens.described(folder.parent if folder.is_file() else folder)

    def tokenise(self, parts: Sequence[Part], decisions: Decisions, tokenizer: tokens.Tokenizer) -> list[Path]:
        """The token files of the parts (without suffix)."""
        kept = self.folder / "kept" / f"{decisions.hash()}.npy"
        if not kept.exists():
            near.save_array(kept, decisions.kept)
        outs, tasks, start = [], [], 0
        for part in parts:
            mine = np.packbits(decisions.kept[start : start + part.rows]).tobytes().hex()
            chat = self.config.sources[part.source].format == "chat"
            mark = (
                "tokens",
                work.VERSION,
                tokenizer.hash,
                tokenizer.end,
                part.text_key,
                mine,
                *(["chat"] if chat else []),
            )
            out = self.folder / "tokens" / key_of(*mark)
            outs.append(out)
            if not out.with_suffix(".npy").exists():
                common = {"tokenizer": str(tokenizer.folder / "tokenizer.json"), "dtype": tokenizer.dtype}
                where = {"text": part.text, "kept": str(kept), "start": start, "rows": part.rows, "out": str(out)}
                tasks.append({**common, **where, "end": tokenizer.end, "chat": chat})
            start += part.rows
        self._run("tokenise", tasks, "encoding parts")
        return outs

    def _read(self) -> list[tuple[int, str, int]]:
        """(source, key, rows) of every part."""
        tasks, keys = [], []
        for number, groups in enumerate(sources.discover(self.config, self.folder)):
            for group in groups:
                task = sources.read_task(self.config, self.config.sources[number], group, self.folder)
                keys.append((number, task["key"]))
                if not (self.folder / "read" / f"{task['key']}.json").exists():
                    tasks.append(task)
        self._run("read", tasks, "reading files")
        found = []
        for number, key in keys:
            listed = json.loads((self.folder / "read" / f"{key}.json").read_text())
            found += [(number, part["key"], part["rows"]) for part in listed]
        return found

    def _chain(self, skip: tuple[str, ...]) -> list[tuple[str, dict[str, Any], Any]]:
        """(stage, settings of its scores, what stands for them) of a source."""
        chain: list[tuple[str, dict[str, Any], Any]] = []
        for stage in self.config.order:
            if stage in skip:
                continue
            part = self.config.stage(stage)
            settings: dict[str, Any] = {}
            if stage == "normalise":
                settings = {"form": part.form}
            elif stage == "rules":
                settings = {"use": list(part.use)}
            elif stage == "quality":
                settings = {"classifier": str(self.config.path(part.classifier))}
            elif stage == "pii":
                settings = {"mask": sorted(part.mask)}
            elif stage == "near":
                settings = {"count": part.bands, "rows": part.rows, "ngram": part.ngram, "seed": part.seed}
            elif stage == "decontaminate":
                settings = {"index": str(self._index())}
            chain.append((stage, settings, self._mark(stage, settings)))
        return [*chain, ("final", {}, {})]

    def _mark(self, stage: str, settings: dict[str, Any]) -> Any:
        if stage == "quality":
            path = Path(settings["classifier"])
            if not path.is_file():
                raise DataError(f"the classifier {path} is not there: make it with `pando corpus train-quality`")
            return content_hash(path)
        return Path(settings["index"]).name if stage == "decontaminate" else settings

    def _index(self) -> Path:
        """The index of protected items, kept under its own hash."""
        if not hasattr(self, "_made_index"):
            wanted = self.config.stages.decontaminate
            assert wanted is not None
            made = contamination.index(self._protected or (), wanted.ngram, wanted.shortest)
            if not made.names:
                why = f"all {made.short:,} items are shorter than `shortest: {wanted.shortest}` words, or stock phrases"
                none = "no item to look for; name task files in tasks: or data in files:"
                raise DataError(f"decontaminate: {why if made.short else none}")
            self.protected_items = {"items": len(made.names), "too_short": made.short}
            self._made_index = self.folder / "decontaminate" / f"index-{made.hash[7:31]}.npz"
            if not self._made_index.exists():
                made.save(self._made_index)
        return self._made_index

    def _near_groups(self, parts: Sequence[Part], counted: Any) -> I64:
        """Near-duplicate groups among the counted documents; one task for each band and range of hashes."""
        wanted = self.config.stages.near
        assert wanted is not None
        files = [(part.files.get("near"), part.rows) for part in parts]
        ranges = -(-len(counted) // near.RANGE_ROWS)
        key = key_of("link", work.VERSION, ranges, files_key(parts), np.packbits(counted).tobytes().hex())
        alive = self.folder / "links" / f"{key}-alive.npy"
        if not alive.exists():
            near.save_array(alive, np.asarray(counted, bool))
        tasks, outs = [], []
        for band in range(wanted.bands):
            for place in range(ranges):
                outs.append(self.folder / "links" / f"{key}-{band}-{place}.npy")
                if not outs[-1].exists():
                    which = {"band": band, "range": place, "ranges": ranges}
                    tasks.append({"parts": files, "alive": str(alive), "out": str(outs[-1]), **which})
        self._run("link", tasks, "linking near-duplicates")
        return near.groups([np.load(out) for out in outs], len(counted))

    def _trained(self, wanted: Training, parts: Sequence[Part], decisions: Decisions) -> Path:
        content, sizes = contents(parts), column(parts, "final", "text_bytes").to_numpy(zero_copy_only=False)
        kept = np.flatnonzero(decisions.kept)
        draw = mixed(content ^ mixed_number(self.config.seed + 7))
        order = kept[np.lexsort((kept, draw[kept]))]
        order = order[np.cumsum(sizes[order]) <= max(wanted.sample_mb * 1e6, sizes[order[:1]].sum())]
        key = key_of("tokenizer", work.VERSION, wanted.model_dump(), content_hash(content[order].tobytes()))
        folder = self.folder / "tokenizer" / key
        if not folder.exists():
            texts = _texts(parts, np.sort(order))
            with progress(None, "training the tokenizer"):
                made = bpe.train(texts, wanted.vocab_size)
            with atomic_dir(folder) as aside:
                bpe.save(made, aside)
        return folder

    def _run(self, function: str, tasks: list[dict[str, Any]], label: str) -> None:
        if tasks:
            with progress(len(tasks), label) as advance:
                for _ in engine.run(function, tasks):
                    advance()


def build(config: Config, out: Path, folder: Path, protected: Protected | None = None) -> dict[str, Any]:
    """Makes the corpus in `out` and returns its manifest; finished steps are kept in `folder`.

    The engine must have been started. Whatever stood in `out` is replaced in one rename when all is done.

    Raises:
        PandoError: a source, a tokenizer or a setting that cannot be used, or a full disk.
    """
    out = replaceable(out, "manifest.json", *_FILES, *bpe.FILES)
    made = Build(config, folder, protected)
    if not isinstance(config.tokenizer, Training):
        made.tokenizer([], None)  # a mistake there is told before anything is read
    parts = made.parts()
    decisions = made.decide(parts)
    tokenizer = made.tokenizer(parts, decisions)
    files = made.tokenise(parts, decisions, tokenizer)
    lengths = np.full(len(decisions.rule), 0, np.int64)
    found = [np.load(file.with_suffix(".npy")) for file in files]
    lengths[decisions.kept] = np.concatenate([np.zeros(0, np.int64), *found])
    kept = np.flatnonzero(decisions.kept)
    source = np.repeat([part.source for part in parts], [part.rows for part in parts]).astype(np.int64)
    content = contents(parts)
    mixture = mix(config, kept, source[kept], lengths[kept], content[kept])
    size = column(parts, "final", "text_bytes").to_numpy(zero_copy_only=False).astype(np.int64)
    written = _write_shards(made, parts, files, found, decisions, mixture, size, source, tokenizer)
    content_of = _manifest(made, parts, decisions, mixture, lengths, size, source, tokenizer, written)
    with atomic_dir(out) as aside:
        for split, listed in written.items():
            for place, (path, _) in enumerate(listed):
                for suffix in (".bin", ".idx", ".docs"):
                    _link(path.with_suffix(suffix), aside / f"{split}-{place:05d}{suffix}")
        for name in bpe.FILES:
            if (tokenizer.folder / name).exists():
                shutil.copyfile(tokenizer.folder / name, aside / name)
        write_ledger(aside / "ledger.parquet", config, parts, decisions, lengths)
        manifest = shards.manifest(content_of)
        atomic_write(aside / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def contents(parts: Sequence[Part]) -> U64:
    """[N] the first 64 bits of the hash of each final text."""
    raw = b"".join(column(parts, "final", "content").to_pylist())
    return np.frombuffer(raw, "<u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def files_key(parts: Sequence[Part]) -> list[Any]:
    """What stands for the near-duplicate bands of all parts."""
    return [Path(part.files["near"]).name if "near" in part.files else part.rows for part in parts]


def _texts(parts: Sequence[Part], wanted: I64) -> list[str]:
    """The final texts of documents, in order of their numbers."""
    texts, start = [], 0
    for part in parts:
        mine = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + part.rows)] - start
        if len(mine):
            texts += text_of(part.text).take(pa.array(mine)).to_pylist()
        start += part.rows
    return texts


def _write_shards(
    made: Build,
    parts: Sequence[Part],
    files: Sequence[Path],
    found: Sequence[Any],
    decisions: Decisions,
    mixture: Mixed,
    size: I64,
    source: I64,
    tokenizer: tokens.Tokenizer,
) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """The shards of both splits: their files (without suffix) and facts."""
    total = len(decisions.rule)
    place, first, length = (np.zeros(total, np.int64) for _ in range(3))
    place[decisions.kept] = np.repeat(np.arange(len(parts)), [len(each) for each in found])
    first[decisions.kept] = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(each) - each for each in found)])
    length[decisions.kept] = np.concatenate([np.zeros(0, np.int64), *found])
    names = [file.name for file in files]
    tasks: list[dict[str, Any]] = []
    outs: dict[str, list[Path]] = {}
    for split, chosen in (("train", mixture.train), ("validation", mixture.validation)):
        outs[split] = []
        for begin, end in shards.cut(length[chosen], made.config.shard_tokens):
            mine = chosen[begin:end]
            used, local = np.unique(place[mine], return_inverse=True)
            plan = np.stack([local, first[mine], length[mine], size[mine], source[mine], mine], 1).astype("<i8")
            mark = [names[part] for part in used], content_hash(plan.tobytes())
            out = made.folder / "shards" / key_of("shard", shards.FORMAT_VERSION, tokenizer.dtype, *mark)
            outs[split].append(out)
            if not shards.intact(out, plan):
                near.save_array(out.with_suffix(".plan.npy"), plan)
                paths = [str(files[part].with_suffix(".bin")) for part in used]
                where = {"plan": str(out.with_suffix(".plan.npy")), "out": str(out), "parts": paths}
                tasks.append({"dtype": tokenizer.dtype, **where})
    made._run("shard", tasks, "writing shards")
    return {
        split: [(out, json.loads(out.with_suffix(".json").read_text())) for out in listed]
        for split, listed in outs.items()
    }


def _manifest(
    made: Build,
    parts: Sequence[Part],
    decisions: Decisions,
    mixture: Mixed,
    lengths: I64,
    size: I64,
    source: I64,
    tokenizer: tokens.Tokenizer,
    written: dict[str, list[tuple[Path, dict[str, Any]]]],
) -> dict[str, Any]:
    config = made.config
    listed = []
    for number, one in enumerate(config.sources):
        mine = source == number
        kept = mine & decisions.kept
        dropped = {}
        for place, (stage, rule) in enumerate(decisions.names):
            if count := int((mine & (decisions.rule == place)).sum()):
                dropped[f"{stage}.{rule}"] = count
        listed.append(
            {
                "name": one.name,
                "licence": one.licence,
                "weight": one.weight,
                "documents": int(kept.sum()),
                "tokens": int(lengths[kept].sum()),
                "bytes": int(size[kept].sum()),
                "read": int(mine.sum()),
                "dropped": dropped,
                "train_tokens_asked": mixture.asked[number],
                "train_tokens": mixture.got[number],
                "repeats": round(mixture.repeats[number], 6),
            }
        )
    splits = {}
    for split, facts in written.items():
        splits[split] = [
            {
                "file": f"{split}-{n:05d}.bin",
                "index": f"{split}-{n:05d}.idx",
                "lineage": f"{split}-{n:05d}.docs",
                **fact,
            }
            for n, (_, fact) in enumerate(facts)
        ]
    settings = config.described()
    settings.pop("tokenizer")
    if config.stages.quality is not None:  # where a file lies on this machine names no content
        settings["stages"]["quality"]["classifier"] = content_hash(config.path(config.stages.quality.classifier))
    return {
        "name": config.name,
        "tokenizer": {"file": "tokenizer.json", "hash": tokenizer.hash},
        "vocab_size": tokenizer.vocab_size,
        "dtype": tokenizer.dtype,
        "end": tokenizer.end,
        "sources": listed,
        "splits": splits,
        "settings": settings,
        **({"protected": made.protected_items} if made.protected_items else {}),
    }


def _link(path: Path, to: Path) -> None:
    """The same file under another name, or a copy where the disk knows no such thing."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
