"""Hostile inference requests of the Open Inference Protocol through every entrance: a 4xx with a code, never a 5xx.

Each line of the list is an incident that another server of this protocol had. Whatever is sent, the next caller is
answered as before, and soon; what is refused before its end is told by the stable code of the interface.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from entrances import Door, Entrance, Keys, Reply, bearer, infer_body
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import GOOD, row

from pericard.edge import problems

PATH = "/v2/models/ecg-anomaly/infer"
LENGTH = "inference-header-content-length"
DECLARED = {"sampling_rate": 250, "unit": "mV", "leads": "II"}
TENSOR = {"name": "ecg", "shape": [1, 1, 8], "datatype": "FP32", "data": GOOD}
MALFORMED, INVALID, LARGE, MEDIA = "malformed-request", "invalid-input", "request-too-large", "unsupported-media-type"

Case = tuple[bytes, dict[str, str], str]


def tensor(**changes: Any) -> dict[str, Any]:
    """The good tensor with changes; what is None is left out."""
    return {name: value for name, value in {**TENSOR, **changes}.items() if value is not None}


def asked(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors or (TENSOR,)), "parameters": DECLARED, **more}).encode()


def plain(code: str, body: bytes) -> Case:
    return body, {}, code


def said(code: str, **changes: Any) -> Case:
    return plain(code, asked(tensor(**changes)))


def binary(code: str, size: Any, tail: bytes = row(GOOD), length: int | str | None = None, **changes: Any) -> Case:
    """JSON with a tensor's bytes behind it."""
    text = asked(tensor(**{"data": None, "parameters": {"binary_data_size": size}, **changes}))
    return text + tail, {LENGTH: str(len(text) if length is None else length)}, code


def given_parameters(code: str, **parameters: Any) -> Case:
    return plain(code, asked(parameters={**DECLARED, **parameters}))


TWICE = b'{"inputs":[%s],"inputs":[%s],"parameters":%s}' % (
    json.dumps(TENSOR).encode(), json.dumps(TENSOR).encode(), json.dumps(DECLARED).encode(),
)  # fmt: skip
GOOD_TEXT = json.dumps(GOOD).encode()


def values(data: bytes) -> bytes:
    """The good request with other data, as raw text."""
    return asked().replace(GOOD_TEXT, data)


CASES: dict[str, Case] = {
    # outputs
    "an output twice": plain(MALFORMED, asked(outputs=[{"name": "score"}, {"name": "score"}])),
    "an unknown output": plain(MALFORMED, asked(outputs=[{"name": "weights"}])),
    "a thousand unknown outputs": plain(MALFORMED, asked(outputs=[{"name": f"o{n}"} for n in range(1000)])),
    "a hundred thousand outputs": plain(LARGE, asked(outputs=[{"name": "score"}] * 100_000)),
    "outputs that are none": plain(MALFORMED, asked(outputs=[7])),
    "an output with classification": plain(
        MALFORMED, asked(outputs=[{"name": "score", "parameters": {"classification": 3}}])
    ),
    "an output in shared memory": plain(
        MALFORMED, asked(outputs=[{"name": "score", "parameters": {"shared_memory_region": "x"}}])
    ),
    # shapes
    "a negative dimension": said(INVALID, shape=[-1, 1, 8]),
    "two negative dimensions": said(INVALID, shape=[1, -1, -8]),
    "no rows": said(INVALID, shape=[0, 1, 8], data=[]),
    "no dimension": said(INVALID, shape=[]),
    "another number of dimensions": said(INVALID, shape=[8]),
    "a huge dimension": said(LARGE, shape=[2**62, 1, 8]),
    "a dimension beyond every integer": said(LARGE, shape=[2**200, 1, 8]),
    "a product that overflows": said(INVALID, shape=[2**33, 2**31, 8]),
    "ten thousand dimensions": said(INVALID, shape=[1] * 10_000),
    "a fraction as a dimension": said(MALFORMED, shape=[1, 1, 8.5]),
    "true as a dimension": said(MALFORMED, shape=[True, 1, 8]),
    "text as a dimension": said(MALFORMED, shape=["1", 1, 8]),
    "a shape that is none": said(MALFORMED, shape="x"),
    "no shape": said(MALFORMED, shape=None),
    # values against the shape
    "one value too many": said(INVALID, data=[*GOOD, 1.0]),
    "one value too few": said(INVALID, data=GOOD[:-1]),
    "no values": said(INVALID, data=[]),
    "rows that make up for each other": said(INVALID, shape=[2, 1, 8], data=[[[*GOOD, 9.0]], [GOOD[:-1]]]),
    "lists nested otherwise": said(INVALID, shape=[2, 1, 8], data=[[GOOD[:4], GOOD[4:]], [GOOD[:4], GOOD[4:]]]),
    "a million values": said(INVALID, data=[0] * 1_000_000),
    "a word": plain(MALFORMED, values(b"[NaN,0,0,0,0,0,0,0]")),
    "infinity": plain(MALFORMED, values(b"[Infinity,0,0,0,0,0,0,0]")),
    "a number beyond the type": plain(INVALID, values(b"[1e39,0,0,0,0,0,0,0]")),
    "a number beyond every type": plain(INVALID, values(b"[1e999,0,0,0,0,0,0,0]")),
    "text among the values": said(INVALID, data=["1", *GOOD[1:]]),
    "true among the values": said(INVALID, data=[True, *GOOD[1:]]),
    "null among the values": plain(INVALID, values(b"[null,0,0,0,0,0,0,0]")),
    "an object as data": said(MALFORMED, data={"a": 1}),
    # types
    "another datatype": said(INVALID, datatype="FP64"),
    "strings": said(MALFORMED, datatype="BYTES", data=["x"]),
    "an invented datatype": said(INVALID, datatype="FP32\0"),
    "no datatype": said(MALFORMED, datatype=None),
    # binary
    "a negative size": binary(MALFORMED, -32),
    "true as a size": binary(MALFORMED, True),
    "text as a size": binary(MALFORMED, "32"),
    "a fraction as a size": binary(MALFORMED, 32.5),
    "a size beyond the body": binary(MALFORMED, 33),
    "a size beyond every integer": binary(MALFORMED, 2**64),
    "a size short of the shape": binary(INVALID, 28, row(GOOD)[:28]),
    "bytes left over": binary(MALFORMED, 32, row(GOOD) + b"\0"),
    "bytes and data": binary(MALFORMED, 32, data=GOOD),
    "neither bytes nor data": said(MALFORMED, data=None),
    "bytes without their header": (asked(tensor(data=None, parameters={"binary_data_size": 32})), {}, MALFORMED),
    "bytes that are not finite": binary(INVALID, 32, np.array([np.nan, *GOOD[1:]], "<f4").tobytes()),
    "a header length beyond the body": binary(MALFORMED, 32, length=10**9),
    "a header length below zero": binary(MALFORMED, 32, length=-1),
    "a header length that is no number": binary(MALFORMED, 32, length="0x20"),
    "a header length of a hundred digits": binary(MALFORMED, 32, length="1" * 100),
    "a header length that ends inside the JSON": binary(MALFORMED, 32, length=20),
    "a header length twice": binary(MALFORMED, 32, length="20, 20"),
    "a raw request of another size": (row(GOOD)[:-1], {LENGTH: "0"}, INVALID),
    "a raw request that declares nothing": (row(GOOD), {LENGTH: "0"}, "contract-mismatch"),
    # names
    "an input twice": plain(MALFORMED, asked(TENSOR, TENSOR)),
    "an unknown input": said(MALFORMED, name="weights"),
    "no input": plain(MALFORMED, b'{"inputs":[]}'),
    "thirty thousand inputs": plain(LARGE, asked(*[TENSOR] * 30_000)),
    "a field twice": plain(MALFORMED, TWICE),
    "a parameter twice": plain(MALFORMED, asked().replace(b'"unit"', b'"leads": "I", "unit"')),
    "an unknown field": plain(MALFORMED, asked(extra=1)),
    "an id that is none": plain(MALFORMED, asked(id=7)),
    "an id of a megabyte": plain(LARGE, asked(id="x" * 1_000_000)),
    "another model's name": plain(MALFORMED, asked(model_name="ecg-other")),
    # parameters
    "a sequence": given_parameters(MALFORMED, sequence_id=1),
    "a parameter of the other server's own": given_parameters(MALFORMED, triton_enable_empty_final_response=True),
    "a priority that there is not": given_parameters(MALFORMED, priority=99),
    "a negative priority": given_parameters(MALFORMED, priority=-1),
    "a negative timeout": given_parameters(MALFORMED, timeout=-1),
    "text as a timeout": given_parameters(MALFORMED, timeout="soon"),
    "a rate that is none": given_parameters(MALFORMED, sampling_rate="250"),
    "another rate": given_parameters("contract-mismatch", sampling_rate=500),
    "parameters that are none": plain(MALFORMED, asked(parameters=[1])),
    # JSON itself
    "nothing": plain(MALFORMED, b""),
    "no object": plain(MALFORMED, b"[1]"),
    "cut": plain(MALFORMED, asked()[:-10]),
    "something behind it": plain(MALFORMED, asked() + b"x"),
    "a byte order mark": plain(MALFORMED, b"\xef\xbb\xbf" + asked()),
    "not utf-8": plain(MALFORMED, asked(id="x").replace(b'"x"', b'"\xff"')),
    "a hundred thousand lists": plain(MALFORMED, values(b"[" * 100_000 + b"]" * 100_000)),
    "a thousand objects, nested": plain(MALFORMED, asked(extra=0).replace(b"0}", b'{"a":' * 1000 + b"0" + b"}" * 1001)),
    "five thousand objects": plain(LARGE, b'{"inputs":' + b'{"a":' * 5000 + b"0" + b"}" * 5001),
    # encodings
    "a bomb": (gzip.compress(bytes(64 << 20), 9), {"content-encoding": "gzip"}, LARGE),
    "a bomb of the other kind": (zlib.compress(bytes(64 << 20), 9), {"content-encoding": "deflate"}, LARGE),
    "an unknown encoding": (asked(), {"content-encoding": "br"}, MEDIA),
    "two encodings": (asked(), {"content-encoding": "gzip, gzip"}, MEDIA),
    "no such encoding": (asked(), {"content-encoding": "gzip"}, MALFORMED),
    "half of one": (gzip.compress(asked())[:-9], {"content-encoding": "gzip"}, MALFORMED),
    "something behind one": (gzip.compress(asked()) + b"x", {"content-encoding": "gzip"}, MALFORMED),
}  # fmt: skip


def infer(entrance: Entrance, key: str, body: bytes, headers: dict[str, str], path: str = PATH) -> Reply:
    return entrance.ask("POST", path, {**bearer(key), **headers}, body)


@pytest.fixture(autouse=True)
def neighbour(wide: Door, keys: Keys) -> Iterator[None]:
    """Whatever a test sends, the next caller is answered as before, and soon."""

    def outputs() -> Any:
        return infer(wide.network, keys.good, infer_body(GOOD), {}).json["outputs"]

    before = outputs()
    yield
    started = time.monotonic()
    assert outputs() == before
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_hostile_request_is_refused_with_a_code(entrance: Entrance, keys: Keys, case: Case) -> None:
    body, headers, code = case
    started = time.monotonic()
    reply = infer(entrance, keys.good, body, headers)

    assert (reply.status, reply.code) == (problems.STATUS[code], code), reply
    assert 400 <= reply.status < 500
    assert list(reply.json) == ["error"]
    assert len(reply.body) < 1000
    assert b"Traceback" not in reply.body
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/ecg-anomaly/versions/99/infer",
        "/v2/models/ecg-anomaly/versions/../infer",
        "/v2/models/ecg-anomaly/versions/1%2f/infer",
        "/v2/models/ecg-anomaly/versions/" + "9" * 17 + "/infer",
        "/v2/models/../../etc/passwd/infer",
        "/v2/models/%2e%2e%2fsecret/infer",
        "/v2/models/ECG-anomaly/infer",
        "/v2/models//infer",
        "/v2/models/ecg-anomaly/infer/",
        "/v2/models/ecg-anomaly//infer",
        "/V2/models/ecg-anomaly/infer",
        "/v2/models/missing/infer",
    ],
)
def test_no_other_path_leads_to_a_model(entrance: Entrance, keys: Keys, path: str) -> None:
    reply = infer(entrance, keys.good, infer_body(GOOD), {}, path)

    assert reply.status == 404, reply
    assert reply.code in {"unknown-model", "unknown-route"}


def test_many_tiny_chunks_are_one_body(entrance: Entrance, keys: Keys) -> None:
    body = infer_body(GOOD)
    reply = entrance.ask("POST", PATH, bearer(keys.good), [body[place : place + 1] for place in range(len(body))])

    assert reply.status == 200, reply


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(place=st.integers(0, 400), data=st.binary(max_size=8), cut=st.integers(0, 20), length=st.integers(-1, 400))
def test_any_damage_is_answered_or_refused(
    wide: Door, keys: Keys, place: int, data: bytes, cut: int, length: int
) -> None:
    body, headers, _ = binary("", 32)
    damaged = body[:place] + data + body[place + cut :]
    for head in (headers, {LENGTH: str(length)}, {}):
        reply = infer(wide.entrances["answer"], keys.good, damaged, head)
        assert reply.status < 500, (damaged, head, reply)
        assert (reply.status == 200) == (reply.code == "")


def test_a_good_caller_is_answered_all_through_it(wide: Door, keys: Keys) -> None:
    bad = list(CASES.values())
    for place, (body, headers, code) in enumerate(bad):
        assert infer(wide.network, keys.good, body, headers).code == code
        if place % 10 == 0:
            assert infer(wide.network, keys.good, infer_body(GOOD), {}).status == 200
