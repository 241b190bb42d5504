"""The file that says what a corpus is made of, `corpus.yaml`: sources, stages in order, tokenizer, mixture, shards."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pando.errors import PandoError
from pando.yamlfile import read_yaml

Format = Literal["auto", "text", "markdown", "html", "jsonl", "parquet", "csv", "warc", "code", "chat"]
Kind = Literal["email", "ip", "phone", "secret"]
RuleSet = Literal["gopher", "gopher_repetition", "c4", "fineweb"]
_Strings = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
]


class CorpusFileError(PandoError):
    """A corpus file that does not follow the schema."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Source(_Part):
    """One place that documents come from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Its name in tables and in the manifest.")
    files: _Strings = Field(description="Paths, globs or URLs; relative ones start at the folder of the corpus file.")
    format: Format = Field(default="auto", description="How files hold documents; by default told from their names.")
    text: str = Field(
        default="text",
        description="The column or field that holds the text (JSONL, Parquet, CSV); of chat the turns, by default "
        "`messages`.",
    )
    licence: str = Field(default="not stated", description="Its licence, copied into the manifest and the model card.")
    weight: float | None = Field(default=None, gt=0, description="Its share of the mixture; by default its own tokens.")
    encoding: str = Field(default="utf-8", description="How its bytes spell text.")
    skip: tuple[str, ...] = Field(default=(), description="Stages that leave this source alone.")

    @model_validator(mode="before")
    @classmethod
    def _turns(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("format") == "chat":
            return {"text": "messages", **value}
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError:
            raise ValueError(f"no encoding is called {value!r}; utf-8 and latin-1 are usual") from None
        return value


class Normalise(_Part):
    """Unicode form, line ends, blank lines and control characters."""

    form: Literal["NFC", "NFKC", "none"] = "NFC"


class Language(_Part):
    """Drops documents in other languages (fastText lid.176)."""

    keep: _Strings = ("en",)
    min: float = Field(default=0.65, ge=0, le=1, description="Least probability of the language; 0.65 as in FineWeb.")


class Rules(_Part):
    """Published rules; `set` replaces single thresholds by name, as `pando corpus why` names them."""

    use: tuple[RuleSet, ...] = ("gopher", "gopher_repetition", "fineweb")
    set: dict[str, float] = Field(default_factory=dict)

    @field_validator("set")
    @classmethod
    def _known_rules(cls, value: dict[str, float]) -> dict[str, float]:
        from pando.corpus.thresholds import RULES

        for name in value:
            if name not in RULES:
                raise ValueError(f"no rule is called {name!r}{_nearest(name, list(RULES))}")
        return value


class Quality(_Part):
    """A classifier of one's own, from `pando corpus train-quality`."""

    classifier: str
    min: float = Field(default=0.5, ge=0, le=1)


class Pii(_Part):
    """Masks personal data and secrets; nothing is dropped."""

    mask: tuple[Kind, ...] = ("email", "ip", "phone", "secret")


class Exact(_Part):
    """Drops copies of an earlier document."""


class Near(_Part):
    """Drops near-copies: MinHash over word n-grams, bands x rows permutations (Broder 1997; datatrove's defaults)."""

    bands: int = Field(default=14, ge=1, le=64)
    rows: int = Field(default=8, ge=1, le=32)
    ngram: int = Field(default=5, ge=1, le=32)
    seed: int = Field(default=1, ge=0, lt=2**32)


class Decontaminate(_Part):
    """Drops documents that hold items of tasks which Pando evaluates."""

    tasks: tuple[str, ...] = Field(default=(), description="Task files; all their rows are protected.")
    files: tuple[str, ...] = Field(default=(), description="Data files (or globs) whose texts are protected.")
    ngram: int = Field(default=3, ge=2, le=32)
    min: float = Field(default=0.5, gt=0, le=1, description="Share of an item's n-grams found together.")
    shortest: int = Field(
        default=10, ge=2, description="Items of fewer words are not looked for: common phrases have them."
    )


class Stages(_Part):
    """The stages to run, in the order of the file."""

    normalise: Normalise | None = None
    language: Language | None = None
    rules: Rules | None = None
    quality: Quality | None = None
    pii: Pii | None = None
    exact: Exact | None = None
    near: Near | None = None
    decontaminate: Decontaminate | None = None


_HIDDEN = {"order", "folder"}  # fields of a Config that no file has
USUAL = ("normalise", "exact")  # the stages of a file that names none


class Training(_Part):
    """A tokenizer trained on the kept documents."""

    vocab_size: int = Field(default=16384, ge=300, le=262144)
    sample_mb: float = Field(default=100, gt=0, description="At most so much text, in MB, by a seeded hash.")


class Mixture(_Part):
    """How much of each source the training split holds."""

    tokens: int | None = Field(
        default=None, ge=1, description="Tokens of the training split; by default what there is."
    )
    max_repeat: float = Field(default=4, ge=1, description="No document is read more often than this.")

    @field_validator("tokens", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, str) and value[-1:].upper() in "KMB" and value[:-1].replace(".", "", 1).isdigit():
            return int(float(value[:-1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[value[-1].upper()])
        return value


class Config(_Part):
    """A whole corpus file.

    Attributes:
        order: the stages' names in the order of the file.
        folder: where relative paths start.
    """

    name: str = "corpus"
    seed: int = Field(default=0, ge=0, lt=2**32)
    sources: tuple[Source, ...] = Field(min_length=1)
    stages: Stages = Stages(normalise=Normalise(), exact=Exact())  # as USUAL says
    tokenizer: str | Training = Training()
    mixture: Mixture = Mixture()
    validation: float = Field(default=0.01, ge=0, lt=1, description="Share of documents held back, by content hash.")
    shard_tokens: int = Field(default=2**25, ge=1)
    max_document_mb: float = Field(default=16, gt=0, description="Larger documents are named and left out.")
    order: tuple[str, ...] = USUAL
    folder: Path = Path(".")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}; rename one")
        without = [source.name for source in self.sources if source.weight is None]
        if 0 < len(without) < len(names):
            raise ValueError(f"some sources have a weight and {', '.join(without)} none: give all of them one, or none")
        for source in self.sources:
            for stage in source.skip:
                if stage not in Stages.model_fields:
                    raise ValueError(f"source {source.name} skips {stage!r}, which is no stage: {_stages()}")
        return self

    def stage(self, name: str) -> Any:
        """The settings of a stage that the file has."""
        return getattr(self.stages, name)

    def path(self, text: str) -> Path:
        """A path of the file as an absolute one.

        Raises:
            CorpusFileError: it starts at the home of somebody unknown.
        """
        try:
            return (self.folder / Path(text).expanduser()).absolute()
        except RuntimeError:
            raise CorpusFileError(f"{text}: no home folder is known; write the whole path") from None

    def described(self) -> dict[str, Any]:
        """The settings as JSON, without where the file lies."""
        return self.model_dump(mode="json", exclude={"folder"})


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Reads a corpus file.

    Args:
        changes: settings that replace the file's, as "quality.min=0.7"; a stage's name may stand first.

    Raises:
        CorpusFileError: the file is missing, not YAML, or breaks the schema: file, line and field are named.
    """
    path = Path(path)
    begin = "`sources:` to begin with; see docs/corpus.md"
    values, locate = read_yaml(path, "a corpus file", begin, CorpusFileError)
    for change in changes:
        _apply(values, change)
    for name in sorted(_HIDDEN & values.keys()):
        raise CorpusFileError(f"{path}:{locate([name])}: {name}: {_words({'type': 'extra_forbidden'}, [name])}")
    if isinstance(values.get("stages"), Mapping):
        values["stages"] = {name: {} if part is None else part for name, part in values["stages"].items()}
        values["order"] = list(values["stages"])
    try:
        return Config(**{**values, "folder": path.absolute().parent})
    except ValidationError as error:
        trained = isinstance(values.get("tokenizer"), Mapping)  # then its settings are at fault, not that it is no path
        first = max(error.errors(), key=lambda one: trained and "Training" in one["loc"])
        spot = [part for part in first["loc"] if not (isinstance(part, str) and part in ("Training", "str"))]
        field = ".".join(map(str, spot)) or "the file"
        raise CorpusFileError(f"{path}:{locate(spot)}: {field}: {_words(first, spot)}") from None
    except TypeError as error:
        raise CorpusFileError(f"{path}: {error}") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of corpus files, for editors."""
    schema = Config.model_json_schema()
    for hidden in _HIDDEN:
        schema["properties"].pop(hidden)
    return schema


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    spot = key.strip().split(".")
    if not equals or not all(spot):
        raise CorpusFileError(f"--set {change}: write it as quality.min=0.7")
    if spot[0] in Stages.model_fields:
        spot = ["stages", *spot]
    if spot[0] == "stages" and values.get("stages") is None:
        values["stages"] = {name: {} for name in USUAL}
    at = values
    for part in spot[:-1]:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, dict):
            raise CorpusFileError(f"--set {change}: {part} has no fields")
    try:
        at[spot[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise CorpusFileError(f"--set {change}: {text} is not valid YAML") from None


def _words(error: Any, spot: Sequence[str | int]) -> str:
    if error["type"] == "missing":
        return "is missing; add it"
    if error["type"] == "extra_forbidden":
        known = _known(spot[:-1])
        return f"no such setting{_nearest(str(spot[-1]), known)}; there are {', '.join(known)}"
    what = "must be a list" if error["type"] == "tuple_type" else str(error["msg"]).removeprefix("Value error, ")
    return f"{what} (found {json.dumps(error['input'], default=str)[:80]})"


def _known(spot: Sequence[str | int]) -> list[str]:
    if not spot:
        return [name for name in Config.model_fields if name not in _HIDDEN]
    if spot[0] == "sources":
        return list(Source.model_fields)
    if spot[0] == "stages" and len(spot) > 1:
        kinds = [kind for kind in Stages.model_fields[str(spot[1])].annotation.__args__ if kind is not type(None)]  # type: ignore[union-attr]
        return list(kinds[0].model_fields)
    known: dict[str, type[BaseModel]] = {"stages": Stages, "mixture": Mixture, "tokenizer": Training}
    return list(known.get(str(spot[0]), Config).model_fields)


def _stages() -> str:
    return ", ".join(Stages.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""
