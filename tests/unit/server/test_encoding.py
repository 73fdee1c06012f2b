"""Compressed bodies: whole streams within the limit, nothing else; answers compressed for who asks."""

from __future__ import annotations

import contextlib
import gzip
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard.edge import encoding
from pericard.errors import MalformedRequest, RequestTooLarge, UnsupportedMedia

LIMIT = 4096
GOOD = b'{"inputs": []}' * 20
PACKED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def unpack(body: bytes, name: str, limit: int = LIMIT) -> bytes:
    return encoding.unpack(body, {"content-encoding": name}, limit=limit)


def test_nothing_is_done_to_what_is_not_encoded() -> None:
    assert encoding.unpack(GOOD, {}, limit=1) is GOOD
    assert unpack(GOOD, "identity") is GOOD


@pytest.mark.parametrize(
    ("name", "by"),
    [("gzip", "gzip"), ("GZIP", "gzip"), (" gzip ", "gzip"), ("x-gzip", "gzip"), ("deflate", "deflate")],
)
def test_what_was_packed(name: str, by: str) -> None:
    assert unpack(PACKED[by](GOOD), name) == GOOD
    assert unpack(PACKED[by](b""), name) == b""


@pytest.mark.parametrize("name", PACKED)
def test_the_limit_is_the_unpacked_size(name: str) -> None:
    assert len(unpack(PACKED[name](bytes(LIMIT)), name)) == LIMIT
    with pytest.raises(RequestTooLarge, match="larger than 4096 bytes when unpacked"):
        unpack(PACKED[name](bytes(LIMIT + 1)), name)


@pytest.mark.parametrize(
    "name", ["br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "identity, gzip", "", "gzip;q=1"]
)
def test_encodings_that_are_not_taken(name: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        unpack(gzip.compress(GOOD), name)
    assert caught.value.hint == "use gzip or deflate"


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def with_dictionary(body: bytes) -> bytes:
    stream = zlib.compressobj(zdict=b"inputs")
    return stream.compress(body) + stream.flush()


BAD: dict[str, tuple[str, bytes]] = {
    "nothing": ("gzip", b""),
    "nothing, deflate": ("deflate", b""),
    "not compressed": ("gzip", GOOD),
    "not compressed, deflate": ("deflate", GOOD),
    "the other encoding": ("gzip", zlib.compress(GOOD)),
    "the other encoding, deflate": ("deflate", gzip.compress(GOOD)),
    "deflate without zlib's header": ("deflate", raw_deflate(GOOD)),
    "a preset dictionary": ("deflate", with_dictionary(GOOD)),
    "cut in the header": ("gzip", gzip.compress(GOOD)[:6]),
    "cut in the data": ("gzip", gzip.compress(GOOD)[:-12]),
    "cut in the checksum": ("gzip", gzip.compress(GOOD)[:-1]),
    "cut in the checksum, deflate": ("deflate", zlib.compress(GOOD)[:-1]),
    "a wrong checksum": ("gzip", gzip.compress(GOOD)[:-8] + bytes(8)),
    "a wrong checksum, deflate": ("deflate", zlib.compress(GOOD)[:-4] + bytes(4)),
    "a tail": ("gzip", gzip.compress(GOOD) + b"x"),
    "a tail of zeros": ("gzip", gzip.compress(GOOD) + bytes(8)),
    "a tail, deflate": ("deflate", zlib.compress(GOOD) + b"\n"),
    "two members": ("gzip", gzip.compress(GOOD) * 2),
}


@pytest.mark.parametrize(("name", "body"), BAD.values(), ids=BAD)
def test_what_is_not_one_whole_stream(name: str, body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="body: "):
        unpack(body, name)


@pytest.mark.parametrize("name", PACKED)
def test_a_bomb_costs_no_memory(name: str) -> None:
    bomb = PACKED[name](bytes(64 << 20))
    assert len(bomb) < 128 << 10
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(RequestTooLarge):
            unpack(bomb, name, limit=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert time.process_time() - started < 1


@given(body=st.binary(max_size=200), name=st.sampled_from(["gzip", "deflate"]), cut=st.integers(0, 200))
def test_arbitrary_streams_are_unpacked_or_refused(body: bytes, name: str, cut: int) -> None:
    for sent in (body, PACKED[name](body)[:cut] + body):
        with contextlib.suppress(MalformedRequest, RequestTooLarge):
            assert len(unpack(sent, name, limit=100)) <= 100


# --- answers ----------------------------------------------------------------------------------------------------------

ANSWER = b'{"data": [0.5, 0.25]}' * 100
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate;q=1.0, gzip;q=0.5", "deflate"),
        ("br, deflate", "deflate"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, *;q=0.1", "deflate"),
        (" gzip ; q=0.001 ", "gzip"),
        ("identity;q=0.5, gzip;q=1", "gzip"),
        (None, None),
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip;q=0", None),
        ("gzip;q=0.0, deflate;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=2", None),
        ("gzip;q=-1", None),
        ("gzip;q=nan", None),
        ("gzip;q=1e9", None),
        ("gzip gzip", None),
        (",".join(["x"] * 5000) + ",gzip", None),
    ],
)
def test_who_asks_is_answered_in_kind(accept: str | None, chosen: str | None) -> None:
    headers, body = encoding.pack(ANSWER, accept)
    assert headers.get("content-encoding") == chosen
    assert (UNPACK[chosen](body) if chosen else body) == ANSWER
    if chosen:
        assert headers["vary"] == "accept-encoding"
        assert len(body) < len(ANSWER)


def test_what_does_not_shrink_or_is_small_stays() -> None:
    short = ANSWER[:500]
    assert encoding.pack(short, "gzip") == ({}, short)
    noise = random.Random(1).randbytes(5000)
    assert encoding.pack(noise, "gzip") == ({"vary": "accept-encoding"}, noise)
