"""What callers may send. A field that would change the answer and is not supported is refused by name; harmless
ones, and values equal to the default, are accepted; null is the same as leaving a field out.

Fields follow the OpenAI API; those that it lacks (top_k, min_p, repetition_penalty, stop_token_ids, ignore_eos,
truncate) are named as in `pando.GenerateRequest`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pando.interface import GenerateRequest, Message

MAX_SAMPLES = 128  # answers to one call, over all its prompts
MAX_INPUTS = 2048  # texts of one embedding or classification call
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_SCHEMA = 64 * 1024  # bytes of JSON
MAX_SCHEMA_DEPTH = 64
MAX_LOGPROBS = 20

_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}


def _error(message: str, param: str | None = None, code: str = "invalid_value") -> PydanticCustomError:
    # braces would be read as places to fill in
    safe = message.replace("{", "{{").replace("}", "}}")
    return PydanticCustomError(code, safe, {"param": param} if param else None)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _error("has half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _error("must be a text or a list of texts")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise _error(f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters")
    return stops


def _inputs(value: Any) -> Any:
    """A text, token ids, or a list of either, as a list of texts or of token id lists."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise _error("must be a text, a list of token ids, or a non-empty list of either")
    if all(isinstance(item, str) for item in items):
        return [_unicode(item) for item in items]
    if all(_is_id(item) for item in items):
        return [items]
    if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in items):
        return items
    raise _error("must be a text, a list of token ids, or a list of either, not a mixture or an empty list")


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _content(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if not value or not all(isinstance(part, dict) for part in value):
        raise _error("must be a text or a list of text parts")
    for part in value:
        if part.get("type") != "text":
            raise _error(
                f"parts of type {part.get('type')!r} are not supported, only text", code="unsupported_parameter"
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise _error('a text part is {"type": "text", "text": "..."}')
    return "\n".join(part["text"] for part in value)


class Body(BaseModel):
    """A JSON object whose every field is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    # fields that are taken only with the value that changes nothing
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    harmless: ClassVar[set[str]] = set()

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise _error("must be a JSON object")
        known = {field.alias or name for name, field in cls.model_fields.items()}
        kept, stranger = {}, False
        for name, value in data.items():
            if value is None or name in cls.harmless:
                continue
            if name in cls.neutral:
                if value not in cls.neutral[name]:
                    raise _error("is not supported; leave it out", name, "unsupported_parameter")
                continue
            if name not in known:
                if stranger:
                    continue  # the first is told of; there may be a million
                stranger = True
            kept[name] = value
        return kept


class StreamOptions(Body):
    """Whether the last chunk before the end carries the usage."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}
    include_usage: bool = False


class JsonSchema(Body):
    """A named JSON Schema; `strict` changes nothing, as every schema is enforced."""

    name: str = "answer"
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="after")
    def _bounded(self) -> JsonSchema:
        try:
            size = len(json.dumps(self.schema_, ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise _error("the schema has text that is not Unicode") from None
        if size > MAX_SCHEMA or _depth(self.schema_) > MAX_SCHEMA_DEPTH:
            raise _error(f"the schema must be under {MAX_SCHEMA} bytes and {MAX_SCHEMA_DEPTH} levels")
        return self


class ResponseFormat(Body):
    """Free text, any JSON object, or what follows a JSON Schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _error("json_schema belongs to the type json_schema", "response_format.json_schema")
        return self

    def schema_or_none(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer follows, or None."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Sampling(Body):
    """What chat and plain completions share."""

    harmless: ClassVar[set[str]] = _HARMLESS
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"logit_bias": ({},)}

    model: Text
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Text], BeforeValidator(_stops)] = []
    stop_token_ids: Annotated[list[int], Field(max_length=64)] = []
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False
    truncate: Literal["error", "left"] = "error"

    @model_validator(mode="after")
    def _streamed(self) -> Sampling:
        if self.stream_options and not self.stream:
            raise _error("is only for stream=true", "stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def generate(self, max_tokens: int, **more: Any) -> GenerateRequest:
        """The request to the engine; `more` has the prompt and what the routes differ in."""
        return GenerateRequest(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=max(self.top_p, 1e-6),  # 0 is allowed on the wire and means the likeliest token
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            n=self.n,
            schema=self.response_format.schema_or_none() if self.response_format else None,
            ignore_eos=self.ignore_eos,
            truncate=self.truncate,
            **more,
        )


class ChatMessage(Body):
    """One turn of a chat, text only. `developer` is another name of `system`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"tool_calls": ([],), "annotations": ([],)}
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_content)]

    def message(self) -> Message:
        """As the model's template takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatBody(Sampling):
    """POST /v1/chat/completions"""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),  # without tools both mean no call
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "verbosity": ("medium",),
        "reasoning_effort": ("none",),
    }
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_INPUTS)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise _error("needs logprobs=true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _error("differs from max_tokens; send one of them", "max_completion_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, or None for as many as the context holds."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(Sampling):
    """POST /v1/completions"""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"logit_bias": ({},), "suffix": ("",)}
    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_inputs)]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise _error("is not supported unless it equals n; leave it out", "best_of", "unsupported_parameter")
        if len(self.prompt) * self.n > MAX_SAMPLES:
            raise _error(f"{len(self.prompt)} prompts with n={self.n}: at most {MAX_SAMPLES} answers a call", "prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, a text or token ids."""
        return list(self.prompt)

    @property
    def limit(self) -> int:
        """Most tokens to generate."""
        return 16 if self.max_tokens is None else self.max_tokens


class EmbeddingBody(Body):
    """POST /v1/embeddings"""

    harmless: ClassVar[set[str]] = {"user"}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"dimensions": ()}
    model: Text
    input: Annotated[list[str] | list[list[int]], BeforeValidator(_inputs), Field(max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["query", "document"] | None = None
    truncate: Literal["error", "left", "right"] = "error"


def _documents(value: Any) -> Any:
    found = [one.get("text") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    if not found or not all(isinstance(one, str) for one in found):
        raise _error("must be a list of texts, or of objects with a text, at least one")
    return found


class RerankBody(Body):
    """POST /v1/rerank"""

    harmless: ClassVar[set[str]] = {"user"}
    model: Text
    query: Text
    documents: Annotated[list[Text], BeforeValidator(_documents), Field(max_length=MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    truncate: Literal["error", "left", "right"] = "error"


def _texts(value: Any) -> Any:
    items = _inputs(value)
    if not isinstance(items[0], str):
        raise _error("must be a text or a list of texts")
    return items


class ClassifyBody(Body):
    """POST /v1/classify"""

    harmless: ClassVar[set[str]] = {"user"}
    model: Text
    input: Annotated[list[str], BeforeValidator(_texts), Field(max_length=MAX_INPUTS)]


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    depth, level = 0, [value]
    while level:
        level = [x for v in level if isinstance(v, (dict, list)) for x in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth
