"""What a retrieve task searches: documents, and which of them each query wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pando.errors import DataError
from pando.files import content_hash
from pando.task.file import Task
from pando.task.formats import BadRow, Row, iter_rows

IDS = ("id", "_id")
QUERY_IDS, DOCUMENT_IDS = ("query_id", "query-id"), ("corpus_id", "corpus-id", "document_id")
_MAX_TEXT = 1_000_000  # characters of one document


@dataclass(frozen=True)
class Documents:
    """The documents of a corpus, in the order of its file."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def hash(self) -> str:
        """ "sha256:..." over ids and texts."""
        return content_hash([self.ids, self.texts])


def read_documents(task: Task) -> Documents:
    """The corpus of a retrieve task.

    Raises:
        DataError: it cannot be read, has no documents, an id twice, or a row that is no document; names file and line.
    """
    path = task.folder / (task.data.corpus or "")
    ids: dict[str, int] = {}
    texts = []
    for row in iter_rows(path):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.why}")
        name = _id(row, IDS, path)
        if name in ids:
            raise DataError(f"{path}:{row.line}: the id {name!r} stands in line {ids[name]} too")
        ids[name] = row.line
        texts.append(_document(row, task.fields.document, path))
        try:
            f"{name}{texts[-1]}".encode()
        except UnicodeEncodeError:
            raise DataError(f"{path}:{row.line}: holds half a surrogate pair, which is no character") from None
    if not ids:
        raise DataError(f"{path} has no documents")
    return Documents(tuple(ids), tuple(texts))


def judged_rows(task: Task, name: str, documents: Set[str], joined: list[int]) -> Iterator[Row | BadRow]:
    """The rows of a file of judgements (query, document, grade), joined with their queries: one row for each query,
    with the grades by document where the field `output` is. Its line is that of the query's first judgement; those of
    its other ones are added to `joined`. Grades of 0 and below say that a document is not wanted, and need not be of
    one of the `documents`.

    Raises:
        DataError: a file cannot be read.
    """
    queries, path, wanted = _queries(task), task.folder / name, task.fields.output
    grades: dict[str, dict[str, float]] = {}
    lines: dict[str, int] = {}
    judged: dict[tuple[str, str], tuple[float, int]] = {}
    for row in iter_rows(path):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            query, document = _id(row, QUERY_IDS, path), _id(row, DOCUMENT_IDS, path)
            grade = _grade(row.values.get(wanted))
        except DataError as error:
            yield BadRow(row.line, str(error))
            continue
        if query not in queries:
            yield BadRow(row.line, f"the query {query!r} is not in {task.data.queries}")
            continue
        before, line = judged.setdefault((query, document), (grade, row.line))
        if before != grade:
            yield BadRow(row.line, f"{document!r} has another grade for {query!r} in line {line}")
            continue
        if grade and document not in documents:
            yield BadRow(row.line, f"the document {document!r} is not in {task.data.corpus}")
            continue
        if lines.setdefault(query, row.line) != row.line:
            joined.append(row.line)
        if document in documents:
            grades.setdefault(query, {})[document] = grade
    for query, line in lines.items():
        yield Row(line, {**queries[query], wanted: grades.get(query, {})})


def relevance(value: Any, name: str) -> dict[str, Any]:
    """Wanted documents as grades by id: a list of ids is one of grade 1 each. Grades below 0 are 0: not wanted.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str):
        from pando.task.formats import parse_json

        try:
            parsed = parse_json(value)
        except ValueError:
            parsed = None
        value = parsed if isinstance(parsed, (list, dict)) else [value]  # an id may look like a number
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list):
        value = {str(one): 1 for one in value}
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is neither a list of document ids nor a mapping of ids to grades")
    return {str(document): _grade(grade) for document, grade in value.items()}


def _queries(task: Task) -> dict[str, dict[str, Any]]:
    path = task.folder / (task.data.queries or "")
    found: dict[str, dict[str, Any]] = {}
    for row in iter_rows(path):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.why}")
        name = _id(row, IDS, path)
        if name in found:
            raise DataError(f"{path}:{row.line}: the id {name!r} stands in an earlier line too")
        found[name] = row.values
    return found


def _id(row: Row, names: Sequence[str], path: Path) -> str:
    for name in names:
        value = row.values.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)
    raise DataError(f"{path}:{row.line}: no field {' or '.join(names)}; there are {', '.join(row.values)}")


def _document(row: Row, names: Sequence[str], path: Path) -> str:
    parts = [row.values.get(name) for name in names]
    if all(part is None for part in parts):
        raise DataError(f"{path}:{row.line}: no field {' or '.join(names)}: mend `fields.document` in the task")
    if any(part is not None and not isinstance(part, str) for part in parts):
        raise DataError(f"{path}:{row.line}: {' and '.join(names)} must be texts")
    text = " ".join(part.strip() for part in parts if part)
    if len(text) > _MAX_TEXT:
        raise DataError(f"{path}:{row.line}: a document of {len(text):,} characters; the limit is {_MAX_TEXT:,}")
    return text


def _grade(value: Any) -> float:
    try:
        grade = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"a grade is {repr(value)[:80]}; expected a number") from None
    if not abs(grade) < 1e6:
        raise DataError(f"a grade is {value!r}; expected a number below a million")
    return max(0, int(grade) if grade == int(grade) else grade)
