"""The skin itself: a frozen record of how a base model does one task.

`ask` says what to ask of the model about an input and `answer` reads what comes back. Both are pure: evaluation,
`predict` and the server share them, so that what was measured is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pando.errors import SkinError
from pando.files import content_hash
from pando.interface import Answer, Identity, LanguageModel, Request
from pando.skin.linear import Linear
from pando.skin.parts import Baseline, Decoding, Demonstration, MethodName, Prompt, Reading, Scoring
from pando.skin.prediction import Prediction
from pando.skin.retrieval import Retrieval
from pando.skin.search import DocumentIndex, Searching
from pando.skin.tfidf import TfIdf
from pando.task.file import Kind
from pando.task.rows import Example, Output, row_inputs

if TYPE_CHECKING:
    from pando.skin.methods import Method

FORMAT_VERSION = 1
Input = Example | Mapping[str, Any] | str


@dataclass(frozen=True, eq=False, kw_only=True)
class Skin:
    """How a base does a task. Made by a rung, kept as a folder (`save`, `load_skin`), used by `predict`.

    Attributes:
        name: what it is served as.
        kind: of the task.
        rung: which rung made it.
        method: "floor" asks no model, "score" compares labels, "generate" writes, "probe" reads hidden states,
            "search" ranks documents.
        prompt: instruction and input fields.
        base: the base that it was made on; None for floors.
        labels: of kind classify, sorted.
        demonstrations: shown to the base before each input.
        retrieval: training rows to pick demonstrations from or to shortlist labels with.
        grammar: JSON Schema that a generated answer follows.
        scoring, decoding, reading, searching: settings of the methods "score", "generate", "probe" (and of vectors that
            are searched) and "search".
        documents: what is searched.
        baseline: which floor.
        constant: the answer of the floor "constant".
        words: vectoriser of the floor "tfidf".
        linear: classifier of that floor and of probes.
        adapter: folder with PEFT files, or None.
        abstain: answers with less confidence are withheld; None withholds none.
        card: what was measured: metric, quality, low, high, n, split, dtype, engine.
        bound: the base in memory that it was loaded with, if any; not kept on disk.
        forced: whether another base than its own was allowed when it was loaded; not kept on disk.
    """

    name: str
    kind: Kind
    rung: str
    method: MethodName
    prompt: Prompt
    base: Identity | None = None
    labels: tuple[str, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    retrieval: Retrieval | None = None
    grammar: Mapping[str, Any] | None = None
    scoring: Scoring = field(default_factory=Scoring)
    decoding: Decoding = field(default_factory=Decoding)
    reading: Reading | None = None
    searching: Searching | None = None
    documents: DocumentIndex | None = None
    baseline: Baseline | None = None
    constant: Output | None = None
    words: TfIdf | None = None
    linear: Linear | None = None
    adapter: Path | None = None
    abstain: float | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    bound: LanguageModel | None = field(default=None, repr=False)
    forced: bool = field(default=False, repr=False)

    @property
    def contains_rows(self) -> bool:
        """Whether training rows can be read from it."""
        return bool(self.demonstrations) or (self.retrieval is not None and self.retrieval.rows is not None)

    @cached_property
    def version(self) -> str:
        """ "sha256:..." over all that bears on its answers: neither name nor card."""
        from pando.skin.store import described

        record, files = described(self)
        for key in ("name", "card"):
            record.pop(key, None)
        hashes = {name: content_hash(data) for name, data in files.items()}
        if self.adapter:
            hashes |= {path.name: content_hash(path) for path in sorted(self.adapter.glob("adapter_*"))}
        return content_hash({"skin": record, "files": hashes})

    def ask(self, model: LanguageModel, example: Input) -> list[Request]:
        """What to ask of the model about one input: nothing, or requests for `answer` to read.

        Args:
            example: a row, a mapping of its input fields, or the text of a single one.

        Raises:
            DataError: an input field is missing or no text.
        """
        return self._method.ask(self, model, self.inputs_of(example))

    def answer(self, example: Input, answers: Sequence[Answer]) -> Prediction:
        """Reads the model's answers to what `ask` asked about the same input, in its order."""
        found = self._method.answer(self, self.inputs_of(example), answers)
        unsure = self.abstain is not None and (found.confidence is None or found.confidence < self.abstain)
        return replace(found, value=None, abstained=True) if unsure and found.value is not None else found

    def predict(
        self, inputs: Sequence[Input], model: LanguageModel | None = None, *, force: bool = False
    ) -> list[Prediction]:
        """Answers in the order of the inputs.

        Args:
            inputs: texts, or mappings of the input fields.
            model: the base; without it, the one that the skin was loaded with or made on is loaded, once.
            force: use a base other than the one that the skin was made on.

        Raises:
            PandoError: an input that cannot be answered, a base that is missing or another one.
        """
        from pando.skin.predict import predict_each

        found = predict_each(self, inputs, self.model(model, force=force) if self.base else None)
        for prediction in found:
            if not isinstance(prediction, Prediction):
                raise prediction
        return [p for p in found if isinstance(p, Prediction)]

    def model(self, model: LanguageModel | None = None, *, force: bool = False) -> LanguageModel:
        """The base to use: `model` if it is the right one, else the skin's own, loaded when first needed.

        Raises:
            SkinError: the model is another base and `force` is not given.
            BaseModelError: the skin's base is not on this machine.
        """
        from pando.skin.bases import checked, own_base

        return checked(self, model or self.bound or own_base(self), force=force or self.forced)

    def inputs_of(self, example: Input) -> dict[str, str]:
        """The input fields of a row, a mapping or a text.

        Raises:
            DataError: a field is missing or no text.
            SkinError: a text where the skin has several input fields.
        """
        if isinstance(example, Example):
            return example.inputs
        names = self.prompt.inputs
        if isinstance(example, str):
            if len(names) > 1:
                raise SkinError(f"the skin {self.name} takes the fields {', '.join(names)}: give them by name")
            example = {names[0]: example}
        return row_inputs(example, names)

    @property
    def _method(self) -> Method:
        from pando.skin.methods import METHODS

        return METHODS[self.method]

    def save(self, folder: str | Path) -> Skin:
        """Writes the skin as a folder, whole or not at all; returns it as `load_skin` would read it."""
        from pando.skin.store import save

        return save(self, Path(folder))
