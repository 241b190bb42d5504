"""Web pages to text."""

from __future__ import annotations

import itertools
import re

from pando.errors import DataError

_TAG = re.compile(r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)(/?)[a-zA-Z]")
_DEEPEST = 500  # elements within each other


def html_text(data: bytes) -> str:
    """The text of a page, without menus and other boilerplate (resiliparse); all of it where elements are nested deeper
    than any page of use, for telling boilerplate takes the square of the depth.

    Raises:
        DataError: the extra `[corpus]` is not installed.
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise DataError("HTML needs resiliparse: install pando-fm[corpus]") from None
    tree = HTMLTree.parse(bytes_to_str(data, detect_encoding(data) or "utf-8"))
    depth = itertools.accumulate(-1 if end else 1 for end in _TAG.findall(str(tree)))  # as written out, all are closed
    return str(extract_plain_text(tree, main_content=max(depth, default=0) <= _DEEPEST)).strip()
