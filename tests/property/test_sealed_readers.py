"""Two readers, one written from the specification alone, make the same of what hypothesis seals and spoils."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from sealed_strategies import FLAGS, descriptions, integers, manifests, tensors, termed, values, versions

from pericard import canonical
from pericard.environment import Cuda, Host
from pericard.errors import PericardError, SealedModelError, TrustError
from pericard.keys import Identity, PublisherKey
from pericard.sealed import Description, Manifest, SealedModel, Source, Term, artifact, layout, manifest, notice, seal
from pericard.sealed import grant as grants
from pericard.trust import Pins, Policy, TrustState

sys.path.insert(0, str(Path(__file__).parents[1] / "reader"))
reader: ModuleType = importlib.import_module("sealed_reader")
sys.path.pop(0)

SIGNER = PublisherKey(bytes(range(64)))
PUBLISHER = SIGNER.publisher
SEEDS = (b"hospital".ljust(32), b"archive".ljust(32))
IDENTITIES = tuple(map(Identity, SEEDS))
quick = settings(deadline=None, max_examples=60)
many = settings(deadline=None, max_examples=150)
text = st.text(st.characters(), max_size=12)  # with halves of surrogate pairs
edges = st.sampled_from([sign * 2**63 + step for sign in (-1, 1) for step in (-2, -1, 0, 1)] + [2**53, 2**64, 10**30])
anything = st.recursive(
    st.none() | st.booleans() | integers | edges | text | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
#: What stands at the bounds of members, and what is like it.
limits = st.sampled_from(
    [near + step for near in (0, 1, 366, 4096, 1 << 20, 10**9, 10**12, 10**15, 1 << 40, 1 << 53) for step in (-1, 0, 1)]
) | st.sampled_from(
    ["", "a", "A", "é", "\x7f", "f" * 64, "F" * 64, "f" * 63, "mV", "score", "exported", "onnx", "float32", "a" * 64,
     "a" * 65, "x" * 2000, "x" * 2001, "II", "A256GCM", "1.0", None, True, [], {}, [-1], [-1, 1, 64], [-1, 0], [["II"]],
     [1, 4], [4, 1], [1, 1, 4], [0, 4]],
)  # fmt: skip


def said(call: Callable[[], Any]) -> str:
    """The code with which a reader refuses, or ``success``."""
    try:
        call()
    except PericardError as error:
        return error.code
    except reader.Refused as refusal:
        return str(refusal)
    return "success"


def spoilt(data: st.DataObject, fields: dict[str, Any]) -> bytes:
    """The JSON with another value at one place, or one more or one fewer, in canonical form."""
    holder: Any = fields
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], dict | list) or not holder[key] or data.draw(st.integers(0, 3)) == 0:
            break
        holder = holder[key]
    match data.draw(st.integers(0, 9)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[data.draw(st.sampled_from(["extra", "", "Z", "a" * 33]))] = holder[key]
        case 1 | 2 if isinstance(holder, list):
            holder.append(holder[key])
        case _:
            holder[key] = data.draw(limits | values)
    return canonical.encode(fields)


# --- canonical JSON


def halved(value: Any) -> bool:
    """Whether half of a surrogate pair stands anywhere in it."""
    if isinstance(value, dict):
        return any(map(halved, value)) or any(map(halved, value.values()))
    if isinstance(value, list):
        return any(map(halved, value))
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def encoded(encode: Callable[[Any], Any], value: Any) -> bytes | None:
    try:
        found = encode(value)
    except ValueError:
        return None
    return found.encode() if isinstance(found, str) else bytes(found)


@given(st.dictionaries(text, anything, max_size=5))
@example({"a": "\ud800"})
@example({"\udc00": 1})
@example({"a": "\x7f\u2028\U0001f600"})
@example({"a": 2**63})
@example({"a": [-(2**63), 2**63 - 1]})
@many
def test_both_write_the_same_canonical_json_or_none(value: dict[str, Any]) -> None:
    found = encoded(canonical.encode, value)

    assert found == encoded(reader.canonical, value)
    event("written" if found is not None else "none")
    if halved(value):
        assert found is None
    if found is not None:
        assert canonical.decode(found, limit=len(found)) == value == reader.parse(found, "code")


def deep(levels: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize(("levels", "fine"), [(15, True), (16, False), (2000, False)])
def test_both_stop_at_the_same_depth(kind: type, levels: int, fine: bool) -> None:
    data = json.dumps({"a": deep(levels, kind)}, separators=(",", ":")).encode() if levels < 500 else b'{"a":' * 90000
    codes = [said(lambda: reader.parse(data, "bad"))]
    try:
        canonical.decode(data, limit=1 << 20)
        codes.append("success")
    except ValueError:
        codes.append("bad")

    assert codes == ["success" if fine else "bad"] * 2


pieces = st.sampled_from(
    ['{"a":', "1", "-0", "0", "01", "1.0", "1e1", '"', "\\ud800", "\\udc00", "\\uD83D\\uDE00", "\\ud83d\\ude00",
     "\\u00e9", "\\u0041", "\\/", "\\n", "\\u000a", "\\u007f", "\x7f", "\x01", "é", " ", "}", ",", '"b":', "[", "]",
     "null", "true", "NaN", "Infinity", "9223372036854775807", "9223372036854775808", "-9223372036854775808"],
)  # fmt: skip


@given(st.lists(pieces, max_size=8).map(lambda made: ('{"a":' + "".join(made) + "}").encode()) | st.binary(max_size=60))
@example(b'{"a":"\\ud800"}')
@example(b'{"a":"\\ud83d\\ude00"}')
@example(b'{"a":"\\uD83D\\uDE00"}')
@example(b'{"a":"\x7f"}')
@example(b'{"a":-0}')
@example(b'{"a":1,"a":1}')
@many
def test_both_read_the_same_canonical_json_or_none(data: bytes) -> None:
    try:
        product = canonical.decode(data, limit=1 << 20)
    except ValueError:
        product = None
    try:
        second = reader.parse(data, "code")
    except reader.Refused:
        second = None

    assert product == second


# --- what is spoilt, and signed like that


@given(manifests(), st.data())
@many
def test_both_take_the_same_manifests(made: Manifest, data: st.DataObject) -> None:
    made = replace(made, publisher_id=PUBLISHER.id)
    assert said(lambda: reader.read_manifest(made.encode(), PUBLISHER.public)) == "success"
    found = spoilt(data, json.loads(made.encode()))

    def product() -> None:
        if manifest.parse(found, subject="it").publisher_id != PUBLISHER.id:
            raise SealedModelError  # as step 4 goes on

    codes = (
        said(product).replace("error", "malformed-sealed-model"),
        said(lambda: reader.read_manifest(found, PUBLISHER.public)),
    )
    event(codes[0])
    assert codes[0] == codes[1], found


@given(st.data())
@many
def test_both_take_the_same_grants(data: st.DataObject) -> None:
    made = grants.make(
        bytearray(32), IDENTITIES[0].recipient, SIGNER, manifest="00" * 32, not_before=1, not_after=2, grace_days=0
    )
    ((body, _),) = layout.unpack_grants(layout.pack_grants((made,)), subject="it")
    found = spoilt(data, json.loads(body))
    signatures = SIGNER.sign(layout.GRANT_DOMAIN, found)
    block = [(one.algorithm, one.key_id, one.value) for one in signatures]
    codes = (
        said(lambda: grants.verify(found, signatures, PUBLISHER, manifest="00" * 32)),
        said(lambda: reader.read_grant(found, block, PUBLISHER.public, "00" * 32)),
    )
    event(codes[0])
    assert codes[0] == codes[1], found


@given(st.data())
@many
def test_both_take_the_same_notices(data: st.DataObject) -> None:
    fields = {"format": notice.FORMAT, "publisher": PUBLISHER.id, "model": "tiny", "floor": 4, "issued": 1_790_000_000}
    body = spoilt(data, fields)
    file = len(body).to_bytes(4, "little") + body + layout.pack_signatures(SIGNER.sign(layout.NOTICE_DOMAIN, body))
    codes = (
        said(lambda: notice.verify(file, [PUBLISHER], subject="it")),
        said(lambda: reader.read_notice(file, [PUBLISHER.public])),
    )
    event(codes[0])
    assert codes[0] == codes[1], body


@given(st.binary(max_size=100), st.lists(tensors, max_size=3, unique_by=lambda source: source.name), st.data())
@many
def test_both_take_the_same_artifacts(graph: bytes, made: list[Source], data: st.DataObject) -> None:
    answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
    _, parts = artifact.pack(graph, tuple(made), (((answer,), (answer,)),))
    plain = b"".join(parts)
    length = int.from_bytes(plain[:4], "little")
    index = spoilt(data, json.loads(plain[4 : 4 + length]))
    found = len(index).to_bytes(4, "little") + index.ljust(length, b"\0") + plain[4 + length :]

    codes = said(lambda: artifact.parse(memoryview(found), subject="it")), said(lambda: reader.read_index(found))
    event(codes[0])
    assert codes[0] == codes[1], index


# --- sealed and opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


def product_opens(path: Path, number: int, now: int, runtime: str, host: Host) -> tuple[str, bytes, str]:
    policy = Policy(Pins.of(PUBLISHER), TrustState(path.parent / "trust.json"), runtime=runtime, host=host)
    try:
        with SealedModel(path) as source:
            model = source.verify(policy.publishers)
            licence = policy.accept(model, IDENTITIES[number].recipient.id, now)
            target = bytearray(model.manifest.payload.size)
            model.decrypt_into(model.unwrap(licence.grant, IDENTITIES[number]), memoryview(target))
            return model.manifest.encode().decode(), bytes(target), licence.state(now)
    except TrustError as error:
        return error.code, b"", ""


def second_opens(path: Path, number: int, now: int, runtime: str, host: Host) -> tuple[str, bytes, str]:
    who = SEEDS[number], IDENTITIES[number].recipient.id
    told = host.cuda and {"driver": host.cuda.driver, "cuda": host.cuda.runtime, "cudnn": host.cuda.cudnn}
    try:
        found = reader.open_model(
            path.read_bytes(), [PUBLISHER.public], *who, now=now, runtime=runtime, flags=tuple(host.flags), cuda=told
        )
    except reader.Refused as refusal:
        return str(refusal), b"", ""
    return reader.canonical(found["manifest"]), found["plaintext"], found["licence"]


@given(
    descriptions(),
    st.binary(max_size=200),
    st.lists(tensors, max_size=4, unique_by=lambda source: source.name),
    st.integers(0, 1 << 21),
    st.tuples(*(st.lists(termed(identity.recipient), min_size=1, max_size=2) for identity in IDENTITIES)),
    st.data(),
)
@quick
def test_what_is_sealed_is_what_both_open(
    folder: Path,
    about: Description,
    graph: bytes,
    made: list[Source],
    more: int,
    terms: tuple[list[Term], ...],
    data: st.DataObject,
) -> None:
    answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
    filling = Source("the-filling", "buffer", "uint8", (more,), memoryview(hashlib.shake_128(graph).digest(more)))
    sources = (*(source for source in made if source.name != filling.name), filling)
    size, parts = artifact.pack(graph, sources, (((answer,), (answer,)),))
    plain = b"".join(parts)
    path = folder / "it.sealed"
    path.unlink(missing_ok=True)  # the previous example
    every = [term for of_one in terms for term in of_one]
    sealed = seal(path, about, (size, [plain]), signer=SIGNER, terms=tuple(every))

    number = data.draw(st.integers(0, 1))
    term = data.draw(st.sampled_from(terms[number]))
    edge = data.draw(st.sampled_from([term.not_before, term.not_after, term.not_after + term.grace_days * 86_400]))
    now = max(0, edge + data.draw(st.integers(-1, 1)))
    runtime = about.required_runtime or "ab" * 32
    cuda = st.none() | st.builds(Cuda, *[st.just("") | versions] * 3)
    host = data.draw(st.builds(Host, st.frozensets(st.sampled_from(FLAGS)), cuda))
    site = path, number, now, runtime, host
    product, second = product_opens(*site), second_opens(*site)

    assert product == second
    event(product[2] or product[0])
    if product[2]:
        assert product[:2] == (sealed.manifest.encode().decode(), plain)
        assert json.loads(product[0])["model"]["name"] == about.name
