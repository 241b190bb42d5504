"""The lm-eval adapter against lm-eval's own `hf` model over the same tiny folder."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'pando-fm[eval]')")
pytest.importorskip("peft", reason="peft is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, processors

from pando.engine.engine import Engine
from pando.errors import ContextLengthError, PandoError, RequestError
from pando.evaluate.lm_eval import PandoLM
from pando.model.base import open_base
from pando.model.lora import LoraConfig, TrainableLora, all_linear
from pando.model.peft import save_peft
from tests.tiny import tiny_base

LENGTH = 63  # both sides are told this, so that little text is too long for them
WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "and", "other", "value", "number", "name"]


class Pair:
    """Both models over one folder."""

    def __init__(self, folder: Path, skin: Path | None = None) -> None:
        base = open_base(folder)
        self.engine = Engine(base, base.module(), torch.device("cpu"), "float32", 4096)
        self.ours = PandoLM(self.engine, skin=None if skin is None else str(skin), max_length=LENGTH)
        peft = None if skin is None else str(skin)
        options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 3, "max_length": LENGTH}
        self.theirs = HFLM(pretrained=str(folder), peft=peft, **options)

    def ask(self, kind: str, arguments: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
        requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]  # type: ignore[arg-type]
        return getattr(self.ours, kind)(requests), getattr(self.theirs, kind)(requests, disable_tqdm=True)


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    """lm-eval asks the hub who a folder is; nothing here needs an answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tiny_base(tmp_path_factory.mktemp("base")).folder)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A base whose tokenizer writes a beginning-of-text token by itself."""
    folder = tiny_base(tmp_path_factory.mktemp("bos")).folder
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = "<|im_start|>"
    raw.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, raw.token_to_id(start))]
    )
    raw.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": start, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = Pair(folder)
    yield made
    made.engine.close()


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def pairs(seed: int) -> list[tuple[str, str]]:
    """Contexts of every kind, each with several continuations: shared beginnings, trailing spaces, none, too long."""
    draw = random.Random(seed)
    shots = text(draw, 6)
    contexts = [f"{shots}. {text(draw, draw.randrange(1, 9))}" for _ in range(6)]
    contexts += ["", "the cat  ", f"{text(draw, 3)}\n", text(draw, 80), "<|im_start|>the cat"]
    return [(context, " " + text(draw, n)) for context in contexts for n in (1, 1, 2, 7)]


def assert_same_scores(ours: list[Any], theirs: list[Any]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=2e-4)


def test_scores_are_those_of_hf(pair: Pair, with_bos: Pair) -> None:
    for one in (pair, with_bos):
        assert_same_scores(*one.ask("loglikelihood", pairs(seed=1)))


def test_the_likeliest_continuation_is_called_greedy(pair: Pair) -> None:
    prompts = [context for context, _ in pairs(seed=2)[::4] if 0 < len(context) < 100]
    answers, _ = pair.ask("generate_until", [(prompt, {"until": [], "max_gen_toks": 4}) for prompt in prompts])
    kept = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
    ours, theirs = pair.ask("loglikelihood", kept)
    assert_same_scores(ours, theirs)
    assert any(greedy for _, greedy in ours)


def test_requests_with_one_context_are_asked_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    submit = pair.engine.submit
    monkeypatch.setattr(pair.engine, "submit", lambda request: asked.append(request) or submit(request))
    pair.ask("loglikelihood", [(context, choice) for choice in (" a", " cat", " dog on") for context in ("the", "a b")])
    assert [len(request.continuations) for request in asked] == [3, 3]


def test_rolling_windows_are_those_of_hf(pair: Pair, with_bos: Pair) -> None:
    draw = random.Random(3)
    texts = [(text(draw, words),) for words in (1, 5, 40, 150)]
    for one in (pair, with_bos):
        ours, theirs = one.ask("loglikelihood_rolling", texts)
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_generations_are_those_of_hf(pair: Pair, with_bos: Pair) -> None:
    draw = random.Random(4)
    settings = {"until": ["cat", "\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    asked = [(text(draw, words), settings) for words in (1, 3, 9, 60)]
    asked += [(text(draw, 5), {"until": "a", "max_new_tokens": 9}), (text(draw, 5), {"max_gen_toks": 20})]
    for one in (pair, with_bos):
        ours, theirs = one.ask("generate_until", asked)
        assert ours == theirs
        assert any(ours)


def test_samples_repeat_from_run_to_run_and_differ_within_one(pair: Pair) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 16}
    requests = [Instance("generate_until", {}, ("the cat", settings), i) for i in range(4)]
    first, second = (pair.ours.generate_until(requests) for _ in range(2))
    assert first == second and len(set(first)) > 1


def test_special_tokens_are_those_of_hf(pair: Pair, with_bos: Pair) -> None:
    for one in (pair, with_bos):
        assert one.ours.eot_token_id == one.theirs.eot_token_id
        assert one.ours.prefix_token_id == one.theirs.prefix_token_id
        for string in ("the cat", " a", "<|im_start|>the cat", ""):
            for special in (None, True, False):
                assert one.ours.tok_encode(string, special) == one.theirs.tok_encode(string, special)


def test_chats_are_rendered_as_hf_does_even_with_an_open_last_turn(pair: Pair) -> None:
    chat = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "Answer: "}]
    for history, prompt in ((chat[:1], True), (chat, False)):
        assert pair.ours.apply_chat_template(history, prompt) == pair.theirs.apply_chat_template(history, prompt)


def test_an_adapter_is_applied(pair: Pair, tmp_path: Path) -> None:
    module = pair.engine.module
    config = LoraConfig(4, 16, all_linear(module))
    adapter = TrainableLora(module, config, seed=1)
    with torch.no_grad():
        for b in adapter.b:
            b.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    save_peft(tmp_path, module, config, adapter.tensors(), str(pair.engine.base.folder))
    adapted = Pair(pair.engine.base.folder, tmp_path)
    ours, theirs = adapted.ask("loglikelihood", pairs(seed=5))
    assert_same_scores(ours, theirs)
    plain, _ = pair.ask("loglikelihood", pairs(seed=5))
    assert plain != ours
    adapted.engine.close()


def test_what_it_cannot_do_is_named(pair: Pair) -> None:
    def generate(settings: dict[str, Any]) -> None:
        pair.ours.generate_until([Instance("generate_until", {}, ("the", settings), 0)])

    with pytest.raises(RequestError, match="'num_beams' is not supported"):
        generate({"num_beams": 4})
    with pytest.raises(RequestError, match="max_gen_toks 100"):
        generate({"max_gen_toks": 100})
    with pytest.raises(ContextLengthError):
        pair.ours._loglikelihood_tokens([(None, [1], [2] * (LENGTH + 1))])


def test_results_name_the_base_by_its_content(pair: Pair) -> None:
    digest = pair.engine.identity.hash
    assert pair.ours.get_model_info()["model_sha"] == digest
    assert digest.removeprefix("sha256:")[:16] in pair.ours.tokenizer_name


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "pando.evaluate.lm_eval")
    with pytest.raises(PandoError, match=r"pip install 'pando-fm\[eval\]'"):
        importlib.import_module("pando.evaluate.lm_eval")
