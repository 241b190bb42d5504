"""The task file: what a user wants done, with which rows, measured how, and what it may cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pando.errors import TaskError
from pando.files import content_hash
from pando.yamlfile import read_yaml

Kind = Literal["classify", "extract", "generate", "retrieve"]
RungName = Literal["floor", "zero", "few", "knn", "probe", "embed", "hybrid", "lora"]

RUNGS: tuple[RungName, ...] = ("floor", "zero", "few", "knn", "probe", "embed", "hybrid", "lora")
KIND_RUNGS: dict[str, tuple[RungName, ...]] = {  # kind -> the rungs that fit it
    "classify": ("floor", "zero", "few", "knn", "probe", "lora"),
    "extract": ("floor", "zero", "few", "knn", "lora"),
    "generate": ("floor", "zero", "few", "knn", "lora"),
    "retrieve": ("floor", "embed", "hybrid", "lora"),
}
METRICS: dict[str, tuple[str, ...]] = {  # kind -> the metrics that fit it, the default first
    "classify": ("accuracy", "macro_f1", "exact_match"),
    "extract": ("field_f1", "exact_match"),
    "generate": ("rouge_l", "chrf", "bleu", "exact_match"),
    "retrieve": ("ndcg@10", "recall@10", "recall@100", "mrr@10"),
}
_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
_Text = Annotated[str, Field(min_length=1)]


def _as_file(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TaskFileError(TaskError):
    """All that is wrong with a task: the message names the first and counts the rest; `problems` has one line each."""

    def __init__(self, problems: Sequence[str], found: Sequence[tuple[tuple[str | int, ...], str]]) -> None:
        more = len(problems) - 1
        super().__init__(problems[0] + (f" (and {more} more problem{'s' * (more > 1)})" if more else ""))
        self.problems = list(problems)
        self.found = list(found)


class Data(BaseModel):
    """Where the rows are: `train` and `test`, or one `file` that is split by content."""

    model_config = _CONFIG

    file: _Text | None = None
    """One file with all rows; train, development and test are made from it."""
    train: _Text | None = None
    """Rows to adapt with; development rows are taken from it."""
    test: _Text | None = None
    """Rows that are opened once, for the final number."""
    corpus: _Text | None = None
    """The documents that a retrieve task searches: rows with an `id` and the fields that `fields.document` names."""
    queries: _Text | None = None
    """Retrieve: rows with an `id` and the input; the other files then have judgements (query_id, corpus_id, grade)."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.file is None) == (self.train is None) or (self.train is None) != (self.test is None):
            raise ValueError("give both train and test, or one file")
        if self.train is not None and self.train == self.test:
            raise ValueError("train and test name the same file; give it as `file` and it is split for you")
        return self


class Fields(BaseModel):
    """Which fields of a row are the input, the wanted output and the group."""

    model_config = _CONFIG

    input: Annotated[
        tuple[_Text, ...], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
    ]
    """The field, or the list of fields, that the model sees."""
    output: _Text
    """The wanted answer: a label, a JSON object (extract), a text (generate), or a list of document ids or a mapping of
    them to grades (retrieve; with `queries`, the grade of a judgement)."""
    document: Annotated[
        tuple[_Text, ...], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
    ] = ("title", "text")
    """Retrieve: the fields of a document that are searched; those that a document lacks are left out."""
    group: _Text | None = None
    """Rows with the same value here are kept in one split and counted as one cluster (a customer, a document)."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON Schema of the output object (extract only)."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if len(set(self.input)) < len(self.input):
            raise ValueError("input names a field twice")
        if self.output in self.input:
            raise ValueError(f"{self.output} is both input and output: the model would be shown the answer")
        return self

    @field_validator("json_schema")
    @classmethod
    def _object_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        try:
            json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a JSON Schema: {error}; put dates and the like in quotes") from None
        if schema.get("type") != "object":
            raise ValueError("a schema of an extract task describes an object: `type: object` and its properties")
        if not isinstance(schema.get("properties", {}), dict) or not isinstance(schema.get("required", []), list):
            raise ValueError("not a JSON Schema: properties is a mapping and required a list")
        return schema


class Target(BaseModel):
    """What is good enough. Every part is optional."""

    model_config = _CONFIG

    quality: float | None = None
    """Least value of the metric; the built-in ones lie between 0 and 1."""
    p95_ms: Annotated[float, Field(gt=0)] | None = None
    """Most milliseconds for 95 % of the calls, one at a time."""
    cost_per_1k: Annotated[float, Field(ge=0)] | None = None
    """Most US dollars per 1,000 calls."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Without a target: how far behind the best a cheaper rung may be, in units of the metric."""


class Budget(BaseModel):
    """How much the adapting itself may take."""

    model_config = _CONFIG

    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock minutes for the whole ladder."""


class Abstain(BaseModel):
    """When a skin says that it does not know: exactly one of the two."""

    model_config = _CONFIG

    below: Annotated[float, Field(gt=0, le=1)] | None = None
    """Answers with a confidence below this are withheld."""
    precision: Annotated[float, Field(gt=0, le=1)] | None = None
    """The threshold is chosen on confirmation rows so that what is answered is right this often."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.below is None) == (self.precision is None):
            raise ValueError("give exactly one of below and precision")
        return self


class Task(BaseModel):
    """A task, from `Task.load("task.yaml")` or built in Python with the same keys: `Task(name=..., fields={...})`.

    Raises:
        TaskError: an unknown or missing key, a value of the wrong kind, or keys that contradict each other.
    """

    model_config = ConfigDict(**_CONFIG, title="Pando task")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Names the task in reports and its skin in a server: letters, digits, `.`, `_` and `-`."""
    kind: Kind
    """classify: one of the labels in the rows; extract: a JSON object; generate: a text; retrieve: ranked documents."""
    instruction: Annotated[str, Field(min_length=1)]
    """What the model is told to do, in words."""
    data: Annotated[Data, BeforeValidator(_as_file, json_schema_input_type=str | Data)]
    """`{train: ..., test: ...}`, or one file; JSONL, CSV, TSV or Parquet, plain, .gz or .zst, relative to this file."""
    fields: Fields
    """Which fields of a row are what."""
    metric: str = Field(default_factory=lambda data: METRICS.get(data.get("kind", ""), ("",))[0])
    """accuracy, macro_f1, field_f1, exact_match, rouge_l, chrf, bleu, ndcg@10, recall@10, recall@100, mrr@10, or
    `file.py:function` (one number per row)."""
    target: Target = Target()
    """What is good enough."""
    budget: Budget = Budget()
    """How much the adapting may take."""
    rungs: Annotated[tuple[RungName, ...], Field(min_length=1)] = Field(
        default_factory=lambda data: KIND_RUNGS.get(data.get("kind", ""), RUNGS)
    )
    """Which rungs to try; all that fit the kind unless given."""
    abstain: Abstain | None = None
    """When to say "I do not know"."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Whether rows that cannot be used stop everything or are left out and counted."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of whatever is drawn at random (never of the splits, which follow from the content)."""

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # a default that depends on a wrong key is not a problem of its own
            errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
            found = [(_spot(e["loc"]), _in_words(e)) for e in errors]
            raise TaskFileError([f"task: {_dotted(loc)}{what}" for loc, what in found], found) from None

    @classmethod
    def load(cls, path: str | Path) -> Task:
        """Reads a task file; what is wrong is named by file, line and field."""
        path = Path(path)
        values, locate = read_yaml(path, "a task file", "'name: ...' to begin with; see `pando task schema`", TaskError)
        try:
            task = cls(**{str(key): value for key, value in values.items()})
            task._folder = path.absolute().parent
            task._check_metric_file()
        except TaskFileError as error:
            places = sorted((locate(loc), _dotted(loc) + what, (loc, what)) for loc, what in error.found)
            problems = [f"{path}:{line}: {text}" for line, text, _ in places]
            raise TaskFileError(problems, [found for _, _, found in places]) from None
        return task

    @property
    def folder(self) -> Path:
        """Where the paths of this task start: the task file's folder, or the working directory at its making."""
        return self._folder

    @property
    def train_path(self) -> Path:
        """The file with the training rows, or the only one."""
        return self._folder / (self.data.file or self.data.train or "")

    @property
    def test_path(self) -> Path | None:
        """The file with the test rows; None where one file is split."""
        return self._folder / self.data.test if self.data.test else None

    @property
    def metric_path(self) -> Path | None:
        """The file of a metric given as `file.py:function`, else None."""
        name, colon, _ = self.metric.rpartition(":")
        return self._folder / name if colon else None

    @property
    def hash(self) -> str:
        """ "sha256:..." over all that the task says but where its rows are (`Splits.hash` covers what is in them)."""
        said = self.model_dump(mode="json", by_alias=True, exclude={"data"})
        metric = content_hash(self.metric_path) if self.metric_path else None
        return content_hash({"task": said, "metric": metric})

    def _check_metric_file(self) -> None:
        if self.metric_path and not self.metric_path.is_file():
            what = f"no such file: {self.metric_path}"
            raise TaskFileError([what], [(("metric",), what)])

    @field_validator("name", "instruction", mode="before")
    @classmethod
    def _stripped(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @field_validator("data")
    @classmethod
    def _documents_to_search(cls, value: Data, info: ValidationInfo) -> Data:
        retrieve = info.data.get("kind") == "retrieve"
        if retrieve and value.corpus is None:
            raise ValueError("a retrieve task needs `corpus`, the file of its documents")
        if "kind" in info.data and not retrieve and (value.corpus or value.queries):
            raise ValueError(f"corpus and queries are for kind retrieve, not {info.data['kind']}")
        return value

    @field_validator("abstain")
    @classmethod
    def _sure_of_something(cls, value: Abstain | None, info: ValidationInfo) -> Abstain | None:
        if value is not None and info.data.get("kind") == "retrieve":
            raise ValueError("a ranking has no confidence to abstain by")
        return value

    @field_validator("fields")
    @classmethod
    def _schema_only_for_extract(cls, value: Fields, info: ValidationInfo) -> Fields:
        if value.json_schema is not None and info.data.get("kind", "extract") != "extract":
            raise ValueError(f"schema is for kind extract, not {info.data['kind']}")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str, info: ValidationInfo) -> str:
        file, colon, function = value.rpartition(":")
        if colon:
            if not file.endswith(".py") or not function.isidentifier():
                raise ValueError(f"{value} is not of the form file.py:function")
        elif "kind" in info.data and value not in METRICS[info.data["kind"]]:
            known = ", ".join(METRICS[info.data["kind"]])
            raise ValueError(f"{value} does not fit kind {info.data['kind']}; it takes {known} or file.py:function")
        return value

    @field_validator("target")
    @classmethod
    def _quality_in_reach(cls, value: Target, info: ValidationInfo) -> Target:
        if value.quality is not None and ":" not in info.data.get("metric", ":") and not 0 <= value.quality <= 1:
            raise ValueError(f"quality lies between 0 and 1 for {info.data['metric']}: write 0.85 for 85")
        return value

    @field_validator("rungs")
    @classmethod
    def _rungs_that_fit(cls, value: tuple[RungName, ...], info: ValidationInfo) -> tuple[RungName, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a rung twice")
        fitting = KIND_RUNGS.get(info.data.get("kind", ""), RUNGS)
        if unfit := [rung for rung in value if rung not in fitting]:
            kind = info.data["kind"]
            raise ValueError(f"{unfit[0]} does not fit kind {kind}; it takes {', '.join(fitting)}")
        return value


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a task file, for editors."""
    schema = Task.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _spot(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Pydantic names branches of a union and of a validator in a location; the task file knows only keys."""
    return tuple(part for part in loc if isinstance(part, int) or not part.startswith("function-"))


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(map(str, loc)) + ": " if loc else ""


def _in_words(error: Any) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"unknown key; known are {', '.join(_known_keys(error['loc'][:-1]))}"
        case "string_type" if isinstance(error["input"], (bool, int, float)):
            return f"must be a text; YAML reads this as {json.dumps(error['input'])}: put it in quotes"
        case "string_pattern_mismatch":
            return f"{error['input']!r} may only have letters, digits, '.', '_' and '-' (64 at most)"
        case "string_too_short":
            return "is empty"
        case "literal_error":
            return f"{error['input']!r} is not one of {error['ctx']['expected']}"
        case _:
            return str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")


def _known_keys(loc: Sequence[str | int]) -> list[str]:
    model: Any = Task
    for part in _spot(tuple(loc)):
        model = {"data": Data, "fields": Fields, "target": Target, "budget": Budget, "abstain": Abstain}.get(str(part))
    return [field.alias or name for name, field in model.model_fields.items()]
