from __future__ import annotations

import json
import string

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pericard.audit import record
from pericard.errors import AuditLogInvalid

ATOMS = (
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(exclude_categories=["Cs"]))
)
NAMES = st.text(st.characters(max_codepoint=127), min_size=1)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=6)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@settings(deadline=None)
@given(RECORDS)
@example({"every": "".join(map(chr, range(0x180))) + "\u2028\U0001f493"})
def test_the_encoding_is_sorted_ascii_json_without_spaces_and_reads_back(fields: dict[str, object]) -> None:
    if depth(fields) > record.MAX_DEPTH:
        with pytest.raises(AuditLogInvalid, match="nested more than 8 deep"):
            record.encode(fields)
        return
    data = record.encode(fields)
    assert data == json.dumps(fields, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert record.parse(data) == fields


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.text(string.printable).map(str.encode) | RECORDS.map(lambda r: json.dumps(r).encode())
)
def test_reading_any_bytes_either_refuses_or_gives_what_encodes_to_them(data: bytes) -> None:
    try:
        fields = record.parse(data)
    except AuditLogInvalid:
        return
    assert record.encode(fields) == data


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        1.0,
        float("nan"),
        b"bytes",
        (1, 2),
        {1},
        pytest.param(object(), id="an object"),
        2**53,
        -(2**53),
        ["a", [0.5]],
        {"b": {"c": 0.5}},
    ],
    ids=repr,
)
def test_what_has_no_exact_encoding_is_refused(value: object) -> None:
    with pytest.raises(AuditLogInvalid, match=r"^record\.member"):
        record.encode({"fine": 1, "member": value})


@pytest.mark.parametrize("fields", [{1: "a"}, {"": 1}, {"é": 1}, {"a": {2: 1}}, {"a": [{"": 1}]}], ids=repr)
def test_member_names_are_ascii_text(fields: dict[str, object]) -> None:
    with pytest.raises(AuditLogInvalid, match="whose name is not ASCII text"):
        record.encode(fields)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(AuditLogInvalid, match="not Unicode"):
        record.encode({"a": "\ud800"})


def test_no_message_carries_a_value() -> None:
    with pytest.raises(AuditLogInvalid) as refused:
        record.encode({"patient": {"name": ["Ada", 0.5]}})
    assert str(refused.value) == "record.patient.name[]: is a float, which has no exact encoding"


def test_the_size_is_bounded_both_ways() -> None:
    room = record.MAX_RECORD - len(b'{"a":""}')
    longest = record.encode({"a": "x" * room})
    assert len(longest) == record.MAX_RECORD
    assert record.parse(longest) == {"a": "x" * room}
    with pytest.raises(AuditLogInvalid, match="at most 65536"):
        record.encode({"a": "x" * (room + 1)})
    with pytest.raises(AuditLogInvalid, match="at most 65536"):
        record.parse(longest + b" ")
    with pytest.raises(AuditLogInvalid, match="at most 65536"):
        record.encode({"a": "é" * (record.MAX_RECORD // 6 + 1)})


def test_depth_is_bounded() -> None:
    value: object = 1
    for _ in range(record.MAX_DEPTH - 1):
        value = [value]
    record.encode({"a": value})
    with pytest.raises(AuditLogInvalid, match="nested"):
        record.encode({"a": [value]})
    with pytest.raises(AuditLogInvalid):
        record.parse(b"[" * record.MAX_RECORD)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":-0}',
        b'{"a":01}',
        b'{"a":9007199254740992}',
        b'{"a":"\\u0061"}',
        b'{"a":"\\/"}',
        b'{"a":"\xc3\xa9"}',
        b'{"a":"\\u00E9"}',
        b'{"a":"\x7f"}',
        b'{"a":"\\ud800"}',
        b'{"a":NaN}',
        b"[]",
        b"1",
        b"",
        b"\xff",
    ],
)
def test_every_other_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(AuditLogInvalid, match="record"):
        record.parse(data)


def test_times_have_microseconds_and_are_utc() -> None:
    assert record.stamp(0) == "1970-01-01T00:00:00.000000Z"
    assert record.stamp(1_764_547_199_999_999_999) == "2025-11-30T23:59:59.999999Z"


def test_opening_keys_and_commitments_are_what_the_specification_says() -> None:
    key = record.opening_key(bytes(32), 258)
    context = "pericard 2026-11-23 audit log: opening key of one record"
    assert key == blake3(bytes(32) + b"\0\0\0\0\0\0\1\2", derive_key_context=context).digest()
    assert record.commit(key, "input", b"ecg") == blake3(b"input\0ecg", key=key).hexdigest()
    assert record.commit(key, "answer", bytearray(b"ecg")) == blake3(b"answer\0ecg", key=key).hexdigest()


def test_equal_inputs_look_different_in_every_record_and_place() -> None:
    keys = [record.opening_key(bytearray(range(32)), index) for index in range(50)]
    seen = {record.commit(key, label, b"the same strip") for key in keys for label in ("input", "answer")}
    assert len(seen) == 100
