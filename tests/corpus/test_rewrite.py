from __future__ import annotations

import pyarrow as pa
import pytest

from pando.corpus import rewrite


def normalised(text: str, form: str = "NFC") -> str:
    return str(rewrite.normalised(pa.array([text], pa.large_string()), form)[0].as_py())


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("cafe\u0301", "café"),
        ("x \t\ny  ", "x\ny"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n\n  def f():\n\treturn 1\n\n", "  def f():\n\treturn 1"),
        ("a\x07b\ufeffc\u2028d", "abc\nd"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_one_way_to_write_a_text(text: str, better: str) -> None:
    assert normalised(text) == better
    assert normalised(better) == better


def test_compatibility_forms_only_on_request() -> None:
    assert (
        normalised("ﬁ ①") == "ﬁ ①"
        and normalised("ﬁ ①", "NFKC") == "fi 1"
        and normalised("e\u0301", "none") == "e\u0301"
    )


@pytest.mark.parametrize(
    ("text", "better", "kind"),
    [
        ("write to ann.lee+x@mail.example.org.", "write to <email>.", "email"),
        ("from 192.168.10.254, port 8", "from <ip>, port 8", "ip"),
        ("2001:db8::8a2e:370:7334 is up, std::cout and ::x are not", "<ip> is up, std::cout and ::x are not", "ip"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAbC-d\n-----END RSA PRIVATE KEY-----",
            "<secret>",
            "secret",
        ),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334 is up", "<ip> is up", "ip"),
        ("call +49 30 1234 5678 now", "call <phone> now", "phone"),
        ("call (212) 555-0147 or 212-555-0147.", "call <phone> or <phone>.", "phone"),
        ("key AKIAIOSFODNN7EXAMPLE!", "key <secret>!", "secret"),
        ("ghp_" + "a1B2" * 9, "<secret>", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "<secret>", "secret"),
    ],
)
def test_personal_data_is_masked_and_counted(text: str, better: str, kind: str) -> None:
    found, counts = rewrite.masked(pa.array([text, "nothing here"], pa.large_string()), tuple(rewrite.MASKS))
    assert found.to_pylist() == [better, "nothing here"]
    assert counts[kind].to_pylist()[0] >= 1 and all(count[1].as_py() == 0 for count in counts.values())


@pytest.mark.parametrize(
    "text", ["version 1.2.3", "@mention and a @ b", "12 345 678", "pages 100-200", "10:20:30", "1.5"]
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert rewrite.masked(pa.array([text], pa.large_string()), tuple(rewrite.MASKS))[0].to_pylist() == [text]


def test_only_the_kinds_that_are_asked_for() -> None:
    text = pa.array(["a@b.co 10.0.0.1"], pa.large_string())
    found, counts = rewrite.masked(text, ("ip",))
    assert found.to_pylist() == ["a@b.co <ip>"] and set(counts) == {"ip"}
