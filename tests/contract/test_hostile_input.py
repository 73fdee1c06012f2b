"""Hostile input through every entrance: always a 4xx with a code, never a 5xx, never a hang, neighbours unharmed."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from entrances import Door, Entrance, Headers, Keys, Network, Reply, bearer, predict_body, replies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import GOOD, SAMPLES

from pericard.edge import problems

STRIP = json.dumps([GOOD]).encode()


def predict(entrance: Entrance, key: str, body: bytes, headers: Headers = ()) -> Reply:
    given = dict(headers) if headers else {"content-type": "application/json"}
    return entrance.ask("POST", "/predict", {**bearer(key), **given}, body)


def check(reply: Reply, code: str) -> None:
    assert 400 <= reply.status < 500, reply
    assert (reply.status, reply.code) == (problems.STATUS[code], code), reply
    assert len(reply.body) < 2000
    assert b"Traceback" not in reply.body


@pytest.fixture(autouse=True)
def neighbour(wide: Door, keys: Keys) -> Iterator[None]:
    """Whatever a test sends, the next caller is answered as before, and soon."""
    before = predict(wide.network, keys.good, predict_body(GOOD)).json["predictions"][0]["outputs"]
    yield
    started = time.monotonic()
    reply = predict(wide.network, keys.good, predict_body(GOOD))
    assert reply.json["predictions"][0]["outputs"] == before
    assert time.monotonic() - started < 5


# --- bodies -----------------------------------------------------------------------------------------------------------


def body(inputs: bytes = STRIP, **changes: bytes) -> bytes:
    """A body with a field replaced by raw bytes."""
    fields = {
        "model": b'"ecg-anomaly"', "inputs": inputs, "sampling_rate": b"250", "unit": b'"mV"', "leads": b'["II"]',
    }  # fmt: skip
    text = b",".join(b'"%s":%s' % (name.encode(), value) for name, value in {**fields, **changes}.items())
    return b"{%s}" % text


def strip(value: bytes, count: int = SAMPLES) -> bytes:
    """A strip that holds ``value`` and is good otherwise."""
    return b"[" + b",".join([b"0.9", value, *(b"0.%d" % (place % 7) for place in range(count - 2))]) + b"]"


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "a null byte": b"\0",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"x"',
    "an open object": b"{",
    "a cut body": body()[:-5],
    "two bodies": body() + body(),
    "a tail": body() + b" x",
    "a byte order mark": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "invalid UTF-8 in a value": body(unit=b'"\xff\xfe"'),
    "invalid UTF-8 in a name": body()[:-1] + b',"\xff":1}',
    "invalid UTF-8 in inputs": body(b'"\xff"'),
    "a lone surrogate": body(unit=b'"\\ud800"'),
    "a null byte inside": body(unit=b'"m\0V"'),
    "a comment": b"/* x */" + body(),
    "a trailing comma": body()[:-1] + b",}",
    "single quotes": body().replace(b'"', b"'"),
    "NaN as inputs": body(b"NaN"),
    "NaN in inputs": body(strip(b"NaN")),
    "Infinity in inputs": body(strip(b"Infinity")),
    "minus Infinity in inputs": body(strip(b"-Infinity")),
    "NaN as a rate": body(sampling_rate=b"NaN"),
    "a rate beyond numbers": body(sampling_rate=b"1e999"),
    "a leading zero": body(strip(b"0123")),
    "a hexadecimal number": body(strip(b"0x10")),
    "an unknown field": body(invented=b"1"),
    "a field in capitals": body().replace(b'"unit"', b'"Unit"'),
    "a prototype": body(__proto__=b"{}"),
    "inputs twice": body()[:-1] + b',"inputs":[[0,0,0,0,0,0,0,0]]}',
    "the same inputs twice": body()[:-1] + b',"inputs":' + STRIP + b"}",
    "the model twice": body()[:-1] + b',"model":"ecg-other"}',
    "the rate twice": b'{"sampling_rate":500,' + body()[1:],
    "a field twice, once escaped": b'{"\\u006dodel":"ecg-other",' + body()[1:],
    "no inputs": b'{"model":"ecg-anomaly","sampling_rate":250,"unit":"mV","leads":["II"]}',
    "inputs that are null": body(b"null"),
    "inputs that are a number": body(b"2"),
    "inputs that are a string": body(b'"[[1,2]]"'),
    "inputs that are an object": body(b'{"0":[1]}'),
    "inputs that are true": body(b"true"),
    "nested once too often": body(b"[" + b"[" + STRIP + b"]]"),
    "nested a hundred times": body(b"[" * 100 + b"1" + b"]" * 100),
    "100 000 brackets": body(b"[" * 100_000),
    "100 000 brackets, closed": body(b"[" * 100_000 + b"]" * 100_000),
    "100 000 brackets inside": body(b"[[" + b"[" * 100_000 + b"]" * 100_000 + b"]]"),
    "100 000 objects": body(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "100 000 brackets as a model": body(model=b"[" * 100_000 + b"]" * 100_000),
    "a model that is a number": body(model=b"7"),
    "a model that is a list": body(model=b'["ecg-anomaly"]'),
    "a rate that is text": body(sampling_rate=b'"250"'),
    "a rate that is true": body(sampling_rate=b"true"),
    "a rate in a list": body(sampling_rate=b"[250]"),
    "a unit that is a number": body(unit=b"1"),
    "leads that are text": body(leads=b'"II"'),
    "leads that are numbers": body(leads=b"[2]"),
    "leads that hold null": body(leads=b"[null]"),
    "257 items": body(b"[" + b",".join([STRIP] * 257) + b"]"),
    "a million items": body(b"[" + b",".join([b"[]"] * 1_000_000) + b"]"),
    "a million samples": body(strip(b"1", 1_000_000)),
    "a million numbers behind a strip": body(b"[[1]" + b",0" * 1_000_000 + b"]"),
    "100 kB of leads": body(leads=b"[" + b",".join([b'"II"'] * 20_000) + b"]"),
    "a long model": body(model=b'"' + b"x" * 100_000 + b'"'),
}

UNFIT: dict[str, bytes] = {
    "an empty list": body(b"[]"),
    "an empty strip": body(b"[[]]"),
    "an empty item": body(b"[[[]]]"),
    "too many samples": body(strip(b"1", SAMPLES + 1)),
    "two thousand samples": body(strip(b"1", 2000)),
    "a number beyond float64": body(strip(b"1e999")),
    "a number beyond float64, negative": body(strip(b"-1e999")),
    "a number beyond float32": body(strip(b"1e39")),
    "a number of 10 000 digits": body(strip(b"9" * 10_000)),
    "an exponent without end": body(strip(b"1e" + b"9" * 5000)),
    "text among the samples": body(strip(b'"1"')),
    "null among the samples": body(strip(b"null")),
    "true among the samples": body(strip(b"true")),
    "an object among the samples": body(strip(b"{}")),
    "a list among the samples": body(strip(b"[1]")),
    "invalid UTF-8 among the samples": body(strip(b'"\xff"')),
    "two leads": body(b"[[%s,%s]]" % (strip(b"1"), strip(b"1"))),
    "a ragged strip": body(b"[[%s,[1]]]" % strip(b"1")),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_body_that_is_not_what_the_page_describes(entrance: Entrance, keys: Keys, data: bytes) -> None:
    check(predict(entrance, keys.good, data), "malformed-request")


@pytest.mark.parametrize("data", UNFIT.values(), ids=UNFIT.keys())
def test_one_strip_that_does_not_fit(entrance: Entrance, keys: Keys, data: bytes) -> None:
    check(predict(entrance, keys.good, data), "invalid-input")


@pytest.mark.parametrize("name", ["inputs", "model", "sampling_rate", "unit", "leads"])
def test_white_space_and_the_order_of_fields_are_free(entrance: Entrance, keys: Keys, name: str) -> None:
    fields = json.loads(body())
    first = {name: fields.pop(name), **fields}

    reply = predict(entrance, keys.good, json.dumps(first, indent=4).encode())

    assert reply.status == 200, reply


def test_inputs_that_look_like_another_field_are_no_repetition(entrance: Entrance, keys: Keys) -> None:
    reply = predict(entrance, keys.good, body(b'[["II"]]', model=b'"[[\\"II\\"]]"'))
    check(reply, "unknown-model")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["a number beyond float32", "text among the samples", "a list among the samples"])
def test_an_unfit_strip_harms_only_itself(entrance: Entrance, keys: Keys, name: str, place: int) -> None:
    bad = UNFIT[name][UNFIT[name].index(b'"inputs":') + 9 : UNFIT[name].index(b',"sampling_rate"')]
    strips = [json.dumps(GOOD).encode()] * 2
    strips.insert(place, bad)

    reply = predict(entrance, keys.good, body(b"[" + b",".join(strips) + b"]"))

    assert reply.status == 200, reply
    states = [one["status"] for one in reply.json["predictions"]]
    assert states == ["error" if number == place else "ok" for number in range(3)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
fields = st.dictionaries(
    st.sampled_from(["model", "inputs", "sampling_rate", "unit", "leads", "x"]), json_values, max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(changes=fields)
def test_any_values_are_answered_or_refused(wide: Door, keys: Keys, changes: dict[str, Any]) -> None:
    base = {"model": "ecg-anomaly", "inputs": GOOD, "sampling_rate": 250, "unit": "mV", "leads": ["II"]}

    reply = predict(wide.entrances["answer"], keys.good, json.dumps({**base, **changes}).encode())

    assert reply.status == 200 or 400 <= reply.status < 500 or reply.code == "backend-failed", reply
    assert reply.status == 200 or reply.code in problems.STATUS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(place=st.integers(0, 200), data=st.binary(max_size=6), cut=st.integers(0, 6))
def test_any_damage_to_a_body_is_answered_or_refused(wide: Door, keys: Keys, place: int, data: bytes, cut: int) -> None:
    good = body()

    reply = predict(wide.entrances["answer"], keys.good, good[:place] + data + good[place + cut :])

    assert reply.status == 200 or 400 <= reply.status < 500 or reply.code == "backend-failed", reply


# --- media ------------------------------------------------------------------------------------------------------------

MEDIA: list[dict[str, str]] = [
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": "application/vnd.bentoml+pickle"},
    {"content-type": "application/x-pickle"},
    {"content-type": "application/jsonp"},
    {"content-type": "application/json, text/plain"},
    {"content-type": "application/json-seq"},
    {"content-type": ""},
    {"x-nothing": "no content type at all"},
    {"content-type": "application/json", "content-encoding": "br, gzip"},
    {"content-type": "x" * 5000},
]


@pytest.mark.parametrize("headers", MEDIA, ids=lambda headers: str(headers)[:60])
def test_other_media_are_refused(entrance: Entrance, keys: Keys, headers: dict[str, str]) -> None:
    data = gzip.compress(body()) if "content-encoding" in headers else body()

    check(predict(entrance, keys.good, data, headers), "unsupported-media-type")


def test_a_compressed_bomb_is_not_opened(entrance: Entrance, keys: Keys) -> None:
    bomb = gzip.compress(bytes(100 << 20), compresslevel=9)

    for headers in (
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json"},
    ):
        reply = predict(entrance, keys.good, bomb, headers)
        check(reply, "request-too-large" if "content-encoding" in headers else "malformed-request")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"])
def test_json_by_other_spellings_is_taken(entrance: Entrance, keys: Keys, kind: str) -> None:
    assert predict(entrance, keys.good, body(), {"content-type": kind}).status == 200


# --- sizes and times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["8388609", "99999999999", "9" * 15, "9" * 5000])
def test_a_body_that_is_announced_too_large(entrance: Entrance, keys: Keys, length: str) -> None:
    headers = {**bearer(keys.good), "content-type": "application/json", "content-length": length}
    if isinstance(entrance, Network):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        data = f"POST /predict HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n".encode()
        (reply,) = replies(entrance.raw(data, wait=5))
        assert reply.code in {"request-too-large", "malformed-request"}
        assert 400 <= reply.status < 500
    else:
        check(entrance.ask("POST", "/predict", headers, b""), "request-too-large")


@pytest.mark.parametrize("length", ["-1", "+5", "1.5", "0x10", "five", "5, 5", "", " ", "٥"])
def test_a_length_that_is_no_number(entrance: Entrance, keys: Keys, length: str) -> None:
    headers = {**bearer(keys.good), "content-type": "application/json", "content-length": length}
    if isinstance(entrance, Network):
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        data = entrance.raw(
            b"POST /predict HTTP/1.1\r\nHost: x\r\n" + lines + b"Connection: close\r\n\r\n12345", wait=3
        )
        for reply in replies(data):
            check(reply, "malformed-request")
    elif length.isascii():
        check(entrance.ask("POST", "/predict", headers, b"12345"), "malformed-request")


def test_a_body_that_is_larger_than_allowed(narrow_entrance: Entrance, keys: Keys) -> None:
    check(predict(narrow_entrance, keys.good, b" " * 4097), "request-too-large")
    assert predict(narrow_entrance, keys.good, body().ljust(4096)).status == 200


def test_a_body_that_grows_larger_than_allowed(narrow_entrance: Entrance, keys: Keys) -> None:
    headers = {**bearer(keys.good), "content-type": "application/json"}
    chunks = [b" " * 500] * 9

    check(narrow_entrance.ask("POST", "/predict", headers, chunks), "request-too-large")
    assert narrow_entrance.ask("POST", "/predict", headers, [body()[:50], body()[50:]]).status == 200


def test_a_body_without_end_is_ended(narrow: Door, keys: Keys) -> None:
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys.good}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    started = time.monotonic()

    received = narrow.network.raw(head, *[chunk] * 200, wait=5)

    assert not received or replies(received)[0].status == 413
    assert time.monotonic() - started < 5


def test_tiny_chunks_do_not_count_for_less(narrow: Door, keys: Keys) -> None:
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys.good}\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    received = narrow.network.raw(head, b"1\r\n \r\n" * 4000 + b"0\r\n\r\n", wait=5)
    assert replies(received)[0].code in {"malformed-request", "request-timeout"}  # blanks are no JSON

    started = time.monotonic()
    narrow.network.raw(head, *[b"1\r\n \r\n" * 10_000] * 40, wait=5)
    assert time.monotonic() - started < 5


def test_items_are_limited(narrow_entrance: Entrance, keys: Keys) -> None:
    assert predict(narrow_entrance, keys.good, predict_body([GOOD] * 8)).status == 200
    check(predict(narrow_entrance, keys.good, predict_body([GOOD] * 9)), "malformed-request")


def test_headers_are_limited(narrow_entrance: Entrance, keys: Keys) -> None:
    for extra in ({"x-large": "x" * 2100}, {f"x-{number}": "y" * 20 for number in range(100)}):
        reply = narrow_entrance.ask("GET", "/livez", {**bearer(keys.good), **extra})
        check(reply, "request-too-large")


def test_a_slow_body_is_timed_out(narrow_entrance: Entrance, keys: Keys) -> None:
    headers = {**bearer(keys.good), "content-type": "application/json"}
    started = time.monotonic()

    reply = narrow_entrance.ask("POST", "/predict", headers, [b" "] * 8, pause=0.1)

    check(reply, "request-timeout")
    assert time.monotonic() - started < 5


# --- the wire ---------------------------------------------------------------------------------------------------------


def post(keys: Keys, *lines: str, data: bytes = b"") -> bytes:
    head = ["POST /predict HTTP/1.1", "Host: x", f"Authorization: Bearer {keys.good}", "Content-Type: application/json"]
    return "\r\n".join([*head, *lines, "Connection: close", "", ""]).encode("latin-1") + data


LENGTH = f"Content-Length: {len(body())}"
WIRE: dict[str, tuple[list[str], bytes]] = {
    "two lengths": ([LENGTH, "Content-Length: 5"], body()),
    "the same length twice": ([LENGTH, LENGTH], body()),
    "a length and chunks": ([LENGTH, "Transfer-Encoding: chunked"], b"0\r\n\r\n" + body()),
    "chunks and a length": (["Transfer-Encoding: chunked", LENGTH], b"0\r\n\r\n"),
    "chunks twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    "chunked, then not": (["Transfer-Encoding: chunked, identity"], b"0\r\n\r\n"),
    "gzip chunks": (["Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
    "an invented encoding": (["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
    "a bad chunk size": (["Transfer-Encoding: chunked"], b"zz\r\n" + body()),
    "a negative chunk size": (["Transfer-Encoding: chunked"], b"-5\r\n12345\r\n0\r\n\r\n"),
    "a chunk size beyond numbers": (["Transfer-Encoding: chunked"], b"f" * 40 + b"\r\n"),
    "a chunk longer than it says": (["Transfer-Encoding: chunked"], b"3\r\n12345\r\n0\r\n\r\n"),
    "a chunk extension without end": (["Transfer-Encoding: chunked"], b"3;" + b"x" * 20_000),
    "a line feed alone": (["X-A: b\nX-C: d"], b""),
    "a carriage return alone": (["X-A: b\rX-C: d"], b""),
    "a null byte in a value": (["X-A: b\0c"], b""),
    "a null byte in a name": (["X-\0A: b"], b""),
    "a line break in the request id": (["X-Request-Id: a\r\n\tSet-Cookie: x=y"], b""),
    "a colon missing": (["X-A"], b""),
    "a second request line": (["GET /metrics HTTP/1.1"], b""),
    "no end": (["X-A: b"], b"{"),
}  # fmt: skip


@pytest.mark.parametrize("name", WIRE)
def test_a_message_that_is_not_quite_http(narrow: Door, keys: Keys, name: str) -> None:
    lines, data = WIRE[name]
    started = time.monotonic()

    received = narrow.network.raw(post(keys, *lines, data=data), wait=5)

    (reply,) = replies(received)  # one message is one answer, or somebody smuggles
    check(reply, "request-timeout" if name == "a chunk extension without end" else "malformed-request")
    assert "set-cookie" not in reply.headers
    assert time.monotonic() - started < 5


GARBAGE: dict[str, bytes] = {
    "TLS in the clear": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "zeros": bytes(4000),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"EHLO x\r\n",
    "a long method": b"G" * 5000 + b" / HTTP/1.1\r\n\r\n",
    "a long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(50_000)) + b"\r\n",
    "a header name without end": b"GET / HTTP/1.1\r\n" + b"x" * 200_000,
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "a pickle": b"\x80\x04\x95" + bytes(50),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_with_a_code(narrow: Door, data: bytes) -> None:
    started = time.monotonic()
    received = narrow.network.raw(data, wait=5)

    assert time.monotonic() - started < 5
    (reply,) = replies(received)
    assert reply.code in {"malformed-request", "request-too-large"}, reply


def test_a_flood_of_headers_is_answered_and_cut_off(narrow: Door) -> None:
    flood = [b"GET / HTTP/1.1\r\n", *[b"x-flood: " + b"y" * 50_000 + b"\r\n"] * 400]  # 20 MB
    started = time.monotonic()

    received = narrow.network.raw(*flood, wait=5)

    assert time.monotonic() - started < 5
    assert not received or replies(received)[0].code == "request-too-large"


def test_the_refusal_of_large_headers_can_be_read(narrow: Door) -> None:
    received = narrow.network.raw(b"GET / HTTP/1.1\r\nx-large: " + b"y" * 10_000, wait=5)

    (reply,) = replies(received)
    check(reply, "request-too-large")
    assert reply.headers["connection"] == "close"


def test_a_trailer_is_no_header_and_has_an_end(narrow: Door, keys: Keys) -> None:
    anonymous = post(keys, "Transfer-Encoding: chunked").replace(
        b"Authorization: Bearer " + keys.good.encode() + b"\r\n", b""
    )
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(body()), body())
    (reply,) = replies(narrow.network.raw(anonymous, chunks + f"Authorization: Bearer {keys.good}\r\n\r\n".encode()))
    assert reply.status == 401

    started = time.monotonic()
    narrow.network.raw(
        post(keys, "Transfer-Encoding: chunked"), chunks, *[b"x-t: " + b"y" * 60_000 + b"\r\n"] * 100, wait=5
    )
    assert time.monotonic() - started < 5


def closed_after(network: Network, *data: bytes, pause: float = 0.0, limit: float = 8.0) -> tuple[float, bytes]:
    """Seconds until the server ends a connection that sends so much and then nothing; and what it said."""
    started = time.monotonic()
    received = bytearray()
    with socket.create_connection(("127.0.0.1", network.port), timeout=limit) as sock:
        try:
            for part in data:
                sock.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while part := sock.recv(1 << 16):
                received += part
        except ConnectionResetError:
            pass
    return time.monotonic() - started, bytes(received)


def test_a_connection_that_says_nothing_is_closed(narrow: Door) -> None:
    seconds, received = closed_after(narrow.network)

    assert seconds < 5
    assert received == b""


def test_a_head_that_never_ends_is_timed_out(narrow: Door) -> None:
    seconds, received = closed_after(narrow.network, b"GET /livez HTTP/1.1\r\n", *[b"x: y\r\n"] * 15, pause=0.1)

    assert seconds < 6
    assert replies(received)[0].code == "request-timeout"


def test_blank_lines_do_not_keep_a_connection(narrow: Door) -> None:
    seconds, _ = closed_after(narrow.network, *[b"\r\n"] * 20, pause=0.1)

    assert seconds < 7


def test_what_is_sent_after_an_early_refusal_has_an_end(narrow: Door) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
    seconds, received = closed_after(narrow.network, head, *[b" "] * 20, pause=0.1)

    assert replies(received)[0].status == 401
    assert seconds < 7


def test_a_body_that_breaks_off_harms_nobody(narrow: Door, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    for data in (
        post(keys, "Content-Length: 1000", data=b"{"),
        post(keys, "Transfer-Encoding: chunked", data=b"5\r\n{"),
    ):
        with socket.create_connection(("127.0.0.1", narrow.network.port), timeout=5) as sock:
            sock.sendall(data)
            time.sleep(0.05)
    time.sleep(0.1)
    assert caplog.text == ""


def cut_off(network: Network, data: bytes, pause: float) -> bool:
    """Whether the server ends a connection that sends without end and never reads."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(1)
        sock.connect(("127.0.0.1", network.port))
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                sock.sendall(data)
                time.sleep(pause)
            except TimeoutError:
                continue  # the server takes nothing more; it has not given up yet
            except (BrokenPipeError, ConnectionResetError):
                return True
    return False


def test_a_peer_that_never_reads_is_cut_off(narrow: Door, keys: Keys) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys.good}\r\n\r\n".encode()

    assert cut_off(narrow.network, request * 8, 0.05)


def test_requests_that_wait_for_each_other_without_end_are_cut_off(narrow: Door) -> None:
    assert cut_off(narrow.network, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2000, 0)


def test_pipelined_requests_are_answered_in_order(narrow: Door, keys: Keys) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: one\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: three\r\nConnection: close\r\n\r\n"
    middle = post(keys, LENGTH, data=body()).replace(b"Connection: close\r\n", b"X-Request-Id: two\r\n")

    found = replies(narrow.network.raw(first + middle + last))

    assert [reply.headers["x-request-id"] for reply in found] == ["one", "two", "three"]
    assert [reply.status for reply in found] == [200, 200, 200]


def test_garbage_behind_a_request_does_not_take_its_answer(narrow: Door, keys: Keys) -> None:
    good = post(keys, LENGTH, data=body()).replace(b"Connection: close\r\n", b"")

    found = replies(narrow.network.raw(good + b"\0\0\0garbage\r\n\r\n", wait=5))

    assert [reply.status for reply in found] in ([200], [200, 400])


def test_too_many_connections_are_told_so_and_it_recovers(narrow: Door, keys: Keys) -> None:
    held = [socket.create_connection(("127.0.0.1", narrow.network.port), timeout=5) for _ in range(20)]
    time.sleep(0.1)
    try:
        reply = narrow.network.ask("GET", "/livez")
        assert (reply.status, reply.code) == (503, "overloaded")
        assert reply.headers["retry-after"] == "1"
    finally:
        for sock in held:
            sock.close()
    end = time.monotonic() + 5
    while narrow.network.ask("GET", "/livez").status != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert narrow.network.ask("GET", "/livez").status == 200


def test_idle_connections_do_not_lock_others_out_for_good(narrow: Door) -> None:
    held = [socket.create_connection(("127.0.0.1", narrow.network.port), timeout=5) for _ in range(20)]
    try:
        end = time.monotonic() + 8
        while narrow.network.ask("GET", "/livez").status != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert narrow.network.ask("GET", "/livez").status == 200  # although they are still there
    finally:
        for sock in held:
            sock.close()


def test_a_good_caller_is_answered_all_through_an_attack(wide: Door, keys: Keys) -> None:
    stop = threading.Event()
    attacks: list[Callable[[], object]] = [
        lambda: wide.network.raw(b"\0" * 10_000, wait=3),
        lambda: wide.network.raw(b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000, wait=3),
        lambda: predict(wide.network, keys.good, MALFORMED["a million items"]),
        lambda: predict(wide.network, keys.good, MALFORMED["100 000 brackets"]),
        lambda: predict(wide.network, keys.wrong, body()),
        lambda: predict(wide.network, keys.good, body(b"[" + b",".join([strip(b"9e9")] * 200) + b"]")),
    ]

    def attack(number: int) -> None:
        while not stop.is_set():
            attacks[number % len(attacks)]()

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(attack, number) for number in range(6)]
        slowest = 0.0
        for _ in range(10):
            started = time.monotonic()
            assert predict(wide.network, keys.good, body()).status == 200
            slowest = max(slowest, time.monotonic() - started)
        stop.set()
        for one in running:
            one.result(10)
    assert slowest < 10
