"""lm-eval's tasks on our engine: `lm_eval.simple_evaluate(model=PandoLM(engine), tasks=[...])`. Extra `[eval]`.

The engine's rules of scoring are simple; lm-eval's own live here and in `TemplateLM`, so that numbers agree with its
`hf` model: a context's trailing spaces move to the continuation, an empty context is the beginning-of-text token (the
end token where there is none), a text that spells that token gets no second one, what is too long loses its left end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from pando.engine.engine import Engine
from pando.errors import BaseModelError, ContextLengthError, PandoError, RequestError
from pando.files import progress
from pando.interface import Completion, GenerateRequest, Request, ScoreRequest, Scores

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise PandoError(f"the lm-eval adapter needs {error.name}: pip install 'pando-fm[eval]'") from None

_log = logging.getLogger(__name__)
_SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"})

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]  # the request's texts, context ids, continuation ids


class PandoLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model over an engine.

    Requests with the same context become one score request with several continuations, and all requests are handed
    over at once, so that the engine computes what they share (fixed shots, a document's choices) once.

    Args:
        engine: the loaded base.
        skin: folder of a skin or PEFT adapter that is applied to every request.
        max_length: most tokens of one pass; the default is the context.

    Raises:
        BaseModelError: the base names no end token.
    """

    def __init__(self, engine: Engine, skin: str | None = None, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length or engine.context_length
        self.max_gen_toks = 256
        self._engine = engine
        self._skin = skin
        tokenizer = engine.base.tokenizer
        end = tokenizer.raw.token_to_id(tokenizer.specials.get("eos_token", ""))
        if end is None:
            raise BaseModelError(
                f"{engine.identity.name} names no eos_token in tokenizer_config.json; lm-eval needs one"
            )
        self._end: int = end
        self._end_text = tokenizer.specials["eos_token"]
        self._prefix_text = tokenizer.decode([self.prefix_token_id], skip_special=False)
        self._encode = lru_cache(maxsize=16)(tokenizer.encode)  # the choices of a document repeat its context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        first = self._engine.base.tokenizer.bos_id
        return self._end if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and chat template by the base's content, for lm-eval's cache of requests."""
        identity = self._engine.identity
        return f"{identity.name}-{identity.hash.removeprefix('sha256:')[:16]}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes down about the model with its results."""
        identity = self._engine.identity
        return {
            "model_name": identity.name,
            "model_sha": identity.hash,
            "model_revision": identity.revision,
            "model_dtype": self._engine.dtype,
            "skin": self._skin,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special ones as the tokenizer adds them, but none where the text already begins with one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix_text)
        return list(self._encode(string, add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the base's template writes it; without a generation prompt the last message stays open."""
        text = self._engine.render_chat(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        start = text.rindex(last.strip())
        kept = last.lstrip() if text.startswith(last.lstrip(), start) else last.strip()  # some templates strip
        return text[: start + len(kept)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length."""
        windows: list[Encoded] = []
        counts = []
        for (text,) in (request.args for request in requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            counts.append(len(windows) - before)
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        members: dict[tuple[int, ...], list[int]] = {}  # numbers of the requests with this context
        cut = 0
        for number, (_texts, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise ContextLengthError(1 + len(continuation), self.max_length + 1, "continuation")
            cut += len(context) > room
            members.setdefault(tuple(context[-room:]), []).append(number)
        if cut:
            _log.warning("%d of %d contexts were cut on the left to %d tokens", cut, len(requests), self.max_length)
        asked = [
            ScoreRequest(context=context, continuations=[requests[i][2] for i in numbers], skin=self._skin)
            for context, numbers in members.items()
        ]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        answers: Iterable[Scores] = self._ask(asked, "scoring", disable_tqdm)
        for numbers, scores in zip(members.values(), answers, strict=True):
            for i, total, greedy in zip(numbers, scores.logprobs, scores.greedy, strict=True):
                found[i] = (total, greedy)
                if (texts := requests[i][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, found[i])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first stop string, which is left out.

        Raises:
            RequestError: a generation setting that the engine does not have.
        """
        asked = [self._generation(number, *request.args) for number, request in enumerate(requests)]
        answers: Iterable[list[Completion]] = self._ask(asked, "generating", disable_tqdm)
        texts = [completion.text for (completion,) in answers]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generation(self, number: int, context: str, settings: dict[str, Any]) -> GenerateRequest:
        options: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        stop = handle_stop_sequences(options.pop("until", None), eos=self._end_text)
        most = options.pop("max_gen_toks")
        if not options.pop("do_sample"):
            options["temperature"] = 0.0
        if options.get("num_beams") == 1:
            del options["num_beams"]
        if unknown := sorted(set(options) - _SAMPLING):
            raise RequestError(f"generation setting {unknown[0]!r} is not supported", unknown[0])
        if most >= self.max_length:
            raise RequestError(f"max_gen_toks {most} leaves no room in {self.max_length} tokens", "max_gen_toks")
        options.setdefault("seed", number)  # a run repeats itself, and repeats within a run differ
        prompt = self.tok_encode(context)[most - self.max_length :]
        return GenerateRequest(prompt=prompt, max_tokens=most, stop=stop, skin=self._skin, **options)

    def _ask(self, requests: Sequence[Request], label: str, quiet: bool) -> Iterable[Any]:
        """Answers in order; all requests are under way at once, and none goes on if one fails."""
        handles = []
        try:
            for request in requests:
                handles.append(self._engine.submit(request))
            with progress(len(handles), label) as advance:
                for handle in handles:
                    yield handle.result()
                    if not quiet:
                        advance()
        except BaseException:
            for handle in handles:
                handle.abort()
            raise
