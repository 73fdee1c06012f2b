"""Frames: what was packed comes back, whatever way the stream is cut; whatever else arrives is refused by name."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hostile_frames import HOSTILE, QUESTION, header
from hypothesis import given
from hypothesis import strategies as st

from pericard.errors import DeadlineExceeded, PipeError
from pericard.pipe import Entry, Frame, FrameReader, FrameType, Kind, Question, encode, error_frame, frames

U32, U64 = 2**32 - 1, 2**64 - 1

texts = st.binary(max_size=255)
questions = st.builds(
    Question, st.integers(0, U64), st.integers(0, U32), st.integers(0, U32), st.integers(0, U32), st.integers(0, 255),
    texts, texts, st.binary(max_size=300),
)  # fmt: skip
a_key = st.binary(min_size=32, max_size=32)
an_entry = st.builds(
    Entry, st.integers(0, U64), st.integers(0, U64), a_key, a_key, st.sampled_from(Kind), st.binary(max_size=100)
)
metas = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
a_frame = st.builds(
    Frame, st.sampled_from(FrameType), st.integers(0, U64), st.binary(max_size=64), st.binary(max_size=64)
)
ENTRY = Entry(7, 99, b"l" * 32, b"k" * 32, Kind.OK, b"answer")


# --- streams ----------------------------------------------------------------------------------------------------------


@given(sent=st.lists(a_frame, max_size=6), seed=st.integers(0, 2**32), most=st.integers(1, 200))
def test_frames_come_back_whatever_way_the_stream_is_cut(sent: list[Frame], seed: int, most: int) -> None:
    stream = b"".join(frames.pack(*frame) for frame in sent)
    cuts, reader, found = random.Random(seed), FrameReader(), []
    while stream:
        size = cuts.randint(1, most)
        found += reader.feed(stream[:size])
        stream = stream[size:]

    assert found == sent


@given(kind=st.sampled_from(FrameType), request=st.integers(0, U64), meta=metas, body=st.binary(max_size=50))
def test_a_head_of_json_comes_back(kind: FrameType, request: int, meta: dict[str, Any], body: bytes) -> None:
    (frame,) = FrameReader().feed(encode(kind, request, meta, body))

    assert (frame.type, frame.request, frame.meta, frame.body) == (kind, request, meta, body)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_is_taken_from_every_kind_of_buffer_and_keeps_its_own_bytes(kind: Any) -> None:
    data = bytearray(frames.pack(FrameType.INFER, 7, b"head", b"body"))
    (frame,) = FrameReader().feed(kind(data))
    data[:] = bytes(len(data))

    assert frame == Frame(FrameType.INFER, 7, b"head", b"body")


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_hostile_header_is_refused_before_anything_is_waited_for(data: bytes, step: int) -> None:
    reader = FrameReader()

    with pytest.raises(PipeError):
        [reader.feed(data[place : place + step]) for place in range(0, len(data), step)]


def test_a_reader_may_take_less() -> None:
    reader = FrameReader(head=10, body=0)
    assert reader.feed(frames.pack(FrameType.EVENT, 1, b"x" * 10)) == [Frame(FrameType.EVENT, 1, b"x" * 10, b"")]

    for data in (header(head=11), header(body=1)):
        with pytest.raises(PipeError):
            FrameReader(head=10, body=0).feed(data)


def test_the_largest_frame_is_taken_and_what_is_done_is_not_held() -> None:
    reader = FrameReader()
    data = frames.pack(FrameType.ANSWERS, 1, bytes(frames.MAX_HEAD), bytes(frames.MAX_BODY))
    assert reader.feed(data[:-1]) == []
    (frame,) = reader.feed(data[-1:])

    assert (len(frame.head), len(frame.body), len(reader._buffer)) == (frames.MAX_HEAD, frames.MAX_BODY, 0)


@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"PF", b"PF\x02\x00", header()[:4]]))
def test_arbitrary_bytes_are_frames_or_refused(data: bytes, prefix: bytes) -> None:
    try:
        found = FrameReader().feed(prefix + data)
    except PipeError:
        return
    assert b"".join(frames.pack(*frame) for frame in found) == (prefix + data)[: sum(_size(frame) for frame in found)]


def _size(frame: Frame) -> int:
    return frames.HEADER.size + len(frame.head) + len(frame.body)


BAD_META = {
    "not JSON": b"{x}",
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "not text": b"\xff\xfe",
    "half a UTF-16 text": b"\xff\xfe{",
    "nesting": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "an endless number": b'{"a":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", BAD_META.values(), ids=BAD_META.keys())
def test_a_head_that_is_no_object_is_refused(data: bytes) -> None:
    (frame,) = FrameReader().feed(frames.pack(FrameType.EVENT, 0, data))

    with pytest.raises(PipeError):
        _ = frame.meta


@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_any_head_is_an_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(PipeError):
        assert isinstance(frames.parse_meta(data), dict)


# --- questions --------------------------------------------------------------------------------------------------------


@given(request=st.integers(0, U64), question=questions)
def test_a_question_comes_back(request: int, question: Question) -> None:
    (frame,) = FrameReader().feed(frames.pack_question(request, question))

    assert (frame.type, frame.request, frames.unpack_question(frame)) == (FrameType.INFER, request, question)


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": bytes(256)}, {"trace": bytes(256)}, {"offset": -1}, {"offset": 2**64}, {"size": 2**32},
        {"model": -1}, {"model": 2**32}, {"deadline_ms": 2**32}, {"priority": 256},
    ],
    ids=str,
)  # fmt: skip
def test_a_question_that_fits_no_frame_is_not_packed(change: dict[str, Any]) -> None:
    with pytest.raises(PipeError):
        frames.pack_question(1, QUESTION._replace(**change))


def hostile_questions() -> dict[str, Frame]:
    (good,) = FrameReader().feed(frames.pack_question(1, QUESTION))
    head = good.head
    return {
        "nothing": good._replace(head=b""),
        "one byte short": good._replace(head=head[:23]),
        "a request id beyond its end": good._replace(head=head[:21] + b"\xff" + head[22:]),
        "a trace beyond its end": good._replace(head=head[:22] + b"\xff" + head[23:]),
        "a set reserved byte": good._replace(head=head[:23] + b"\x01" + head[24:]),
        "a body": good._replace(body=b"x"),
    }


@pytest.mark.parametrize("name", hostile_questions())
def test_a_hostile_question_is_refused(name: str) -> None:
    with pytest.raises(PipeError):
        frames.unpack_question(hostile_questions()[name])


@given(head=st.binary(max_size=80), body=st.sampled_from([b"", b"x"]))
def test_any_question_means_what_its_bytes_say_or_is_refused(head: bytes, body: bytes) -> None:
    frame = Frame(FrameType.INFER, 5, head, body)
    try:
        question = frames.unpack_question(frame)
    except PipeError:
        return
    assert frames.pack_question(5, question) == frames.pack(FrameType.INFER, 5, head)


# --- answers ----------------------------------------------------------------------------------------------------------


@given(sent=st.lists(an_entry, max_size=6))
def test_entries_come_back(sent: list[Entry]) -> None:
    assert list(frames.entries(b"".join(map(frames.pack_entry, sent)))) == sent


PACKED = frames.pack_entry(ENTRY)


@pytest.mark.parametrize(
    "body", [PACKED[:1], PACKED[:87], PACKED[:-1], PACKED + b"\0", PACKED[:80] + b"\x02" + PACKED[81:]]
)
def test_entries_that_end_early_or_are_of_no_kind_are_refused(body: bytes) -> None:
    with pytest.raises(PipeError):
        list(frames.entries(body))


@given(body=st.binary(max_size=300))
def test_arbitrary_entries_are_entries_or_refused(body: bytes) -> None:
    try:
        found = list(frames.entries(body))
    except PipeError:
        return
    assert sum(len(frames.pack_entry(entry)) for entry in found) == len(body)


def test_an_error_is_a_frame() -> None:
    (frame,) = FrameReader().feed(error_frame(5, DeadlineExceeded("late", hint="wait"), more=1))

    assert (frame.type, frame.request) == (FrameType.ERROR, 5)
    assert frame.meta == {"code": "deadline-exceeded", "message": "late", "hint": "wait", "more": 1}
