"""Canonical JSON: one value, one form; whatever would not be encoded to the very same bytes is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pericard import canonical

LIMIT = 1 << 20


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ({}, b"{}"),
        ({"b": 1, "a": [True, False, None]}, b'{"a":[true,false,null],"b":1}'),
        ({"": "", "é": "\u2028\n"}, b'{"":"","\\u00e9":"\\u2028\\n"}'),
        ({"Z": 1, "a": 2, "_": 3}, b'{"Z":1,"_":3,"a":2}'),
        ({"n": -(2**63), "m": 2**63 - 1}, b'{"m":9223372036854775807,"n":-9223372036854775808}'),
    ],
)
def test_a_value_has_one_form(value: dict[str, Any], encoded: bytes) -> None:
    assert canonical.encode(value) == encoded
    assert canonical.decode(encoded, limit=LIMIT) == value


def test_as_deep_as_allowed_and_no_deeper() -> None:
    value: Any = 1
    for _ in range(15):
        value = [value]
    assert canonical.decode(canonical.encode({"a": value}), limit=LIMIT) == {"a": value}

    with pytest.raises(ValueError, match="nests too deeply"):
        canonical.encode({"a": [value]})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.0, "holds a float"),
        (float("nan"), "holds a float"),
        (2**63, "beyond 64 bits"),
        (-(2**63) - 1, "beyond 64 bits"),
        (b"bytes", "holds a bytes"),
        ((1, 2), "holds a tuple"),
        ({1: 2}, "a key that is not text"),
        ({"a": {None: 2}}, "a key that is not text"),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical.encode({"value": value})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"null", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b'{"a":1} ', "is not in canonical form"),
        (b'{"a": 1}', "is not in canonical form"),
        (b'{"b":1,"a":2}', "is not in canonical form"),
        (b'{"a":-0}', "is not in canonical form"),
        (b'{"a":"\\u0041"}', "is not in canonical form"),
        (b'{"a":"\\/"}', "is not in canonical form"),
        (b'{"a":1,"a":1}', "holds a key twice"),
        (b'{"a":{"b":1,"b":2}}', "holds a key twice"),
        (b'{"a":1.0}', "holds the number 1.0"),
        (b'{"a":1e2}', "holds the number 1e2"),
        (b'{"a":NaN}', "holds the number NaN"),
        (b'{"a":-Infinity}', "holds the number -Infinity"),
        (b'{"a":9223372036854775808}', "beyond 64 bits"),
        (b'{"a":' + b"9" * 5000 + b"}", "limit"),
        (b'{"a":01}', "delimiter"),
        (b'{"a":1}{', "Extra data"),
        ('{"a":"é"}'.encode(), "is not ASCII"),
        (b"\xef\xbb\xbf{}", "is not ASCII"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "nests too deeply"),
        (b"[" * 100_000, "nests too deeply"),
    ],
)
def test_whatever_would_be_encoded_otherwise_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical.decode(data, limit=LIMIT)


def test_the_limit_comes_before_the_parser() -> None:
    assert canonical.decode(b"{}", limit=2) == {}
    with pytest.raises(ValueError, match="is larger than 2 bytes"):
        canonical.decode(b"{} ", limit=2)
