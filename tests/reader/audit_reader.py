"""A second reader of audit logs, receipts and consistency proofs, from ``docs/spec/audit-log.md`` alone: for tests.

A log is given as its files' bytes by name. Whatever does not hold raises :class:`Refused` with the page's code.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

ALTERED, TRUNCATED, SPLIT, INVALID = (
    f"audit-{name}" for name in ("record-altered", "log-truncated", "split-view", "log-invalid")
)
RECORD, HEAD = 1, 2
LIMITS = {RECORD: 65536, HEAD: 16384}
TEXT = set(range(0x20, 0x7F))
ALPHABET = {RECORD: TEXT, HEAD: TEXT | {0x0A, 0xE2, 0x80, 0x94}}
DASH = "\u2014 "
MOST = 2**53
SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


class Refused(Exception): ...  # by its code


class Key(NamedTuple):
    """What verifying takes: the log's name and its public keys."""

    origin: str
    first: bytes
    second: bytes | None = None


def need(true: object, code: str) -> None:
    if not true:
        raise Refused(code)


# --- records ----------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    out = []
    for letter in text.encode("utf-16-be", "surrogatepass").decode("utf-16-be"):  # pairs become one; halves raise
        code = ord(letter)
        if code in SHORT:
            out.append(SHORT[code])
        elif 0x20 <= code < 0x7F:
            out.append(letter)
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            high, low = divmod(code - 0x10000, 0x400)
            out.append(f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}")
    return f'"{"".join(out)}"'


def encoded(value: Any, depth: int = 1) -> str:
    """The one encoding of a value."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is str:
        return quoted(value)
    if type(value) is int and abs(value) < MOST:
        return str(value)
    if depth > 8 or type(value) not in {list, dict}:
        raise ValueError(value)
    if type(value) is list:
        return "[" + ",".join(encoded(each, depth + 1) for each in value) + "]"
    if not all(name and name.isascii() for name in value):
        raise ValueError(value)
    return "{" + ",".join(f"{quoted(name)}:{encoded(value[name], depth + 1)}" for name in sorted(value)) + "}"


def record(data: bytes, code: str) -> dict[str, Any]:
    try:
        need(len(data) <= LIMITS[RECORD], code)
        value = json.loads(data.decode("ascii"))
        need(type(value) is dict and encoded(value).encode("ascii") == data, code)
    except (ValueError, RecursionError) as error:
        raise Refused(code) from error
    return dict(value)


# --- the tree ---------------------------------------------------------------------------------------------------------


def leaf(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1, as it is written there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()


def rooted(index: int, size: int, node: bytes, path: list[bytes]) -> bytes:
    """The root that an audit path leads to: RFC 6962 §2.1.1 read backwards, consuming the path from its end."""
    if size == 1:
        return node
    half = 1 << (size - 1).bit_length() - 1
    if not path:
        raise Refused(ALTERED)
    *rest, sibling = path
    if index < half:
        return sha256(b"\1" + rooted(index, half, node, rest) + sibling).digest()
    return sha256(b"\1" + sibling + rooted(index - half, size - half, node, rest)).digest()


def steps(index: int, size: int) -> int:
    if size == 1:
        return 0
    half = 1 << (size - 1).bit_length() - 1
    return 1 + (steps(index, half) if index < half else steps(index - half, size - half))


def grown(old: int, new: int, path: list[bytes], whole: bytes | None) -> tuple[bytes, bytes]:
    """Both roots that a consistency proof leads to, by RFC 6962 §2.1.2 read backwards; ``whole`` is the old root."""
    if old == new:
        need(len(path) == (whole is None), SPLIT)
        (node,) = path or [whole or b""]
        return node, node
    need(path, SPLIT)
    half = 1 << (new - 1).bit_length() - 1
    *rest, sibling = path
    if old <= half:
        before, after = grown(old, half, rest, whole)
        return before, sha256(b"\1" + after + sibling).digest()
    before, after = grown(old - half, new - half, rest, None)
    return sha256(b"\1" + sibling + before).digest(), sha256(b"\1" + sibling + after).digest()


# --- heads ------------------------------------------------------------------------------------------------------------


def decoded(text: str) -> bytes:
    data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    need(base64.b64encode(data).decode() == text, INVALID)
    return data


def head(note: bytes, key: Key, *, published: bool = False) -> tuple[int, bytes]:
    """Open a head; its size and its root."""
    try:
        need(len(note) <= LIMITS[HEAD], INVALID)
        text = note.decode("utf-8")
        need(all(letter == "\n" or letter.isprintable() for letter in text), INVALID)
        signed, _, tail = text.partition("\n\n")
        origin, size, coded = signed.split("\n")
        need(re.fullmatch(r"0|[1-9]\d*", size, re.ASCII) and len(size) <= 16 and int(size) <= MOST, INVALID)
        found, (*lines, end) = decoded(coded), tail.split("\n")
        need(len(found) == 32 and not end and 1 <= len(lines) <= 16, INVALID)
        parts = [line.split(" ") for line in lines]
        need(all(len(one) == 3 and one[0] == "\u2014" and one[1] and "+" not in one[1] for one in parts), INVALID)
        signatures = [(name, decoded(data)) for _, name, data in parts]
        need(all(len(data) > 4 for _, data in signatures), INVALID)
    except ValueError as error:
        raise Refused(INVALID) from error
    need(origin == key.origin, INVALID)

    def ours(kind: bytes, public: bytes) -> list[bytes]:
        name = sha256(origin.encode() + b"\n" + kind + public).digest()[:4]
        return [data[4:] for whose, data in signatures if whose == origin and data[:4] == name]

    first = ours(b"\1", key.first)
    second = [] if key.second is None else ours(b"\6", key.second)
    need(first and (second or not published or key.second is None), INVALID)
    short = bytes([len(origin)]) + origin.encode()
    message = b"subtree/v1\n\0" + short + bytes(8) + short + bytes(8) + int(size).to_bytes(8, "big") + found
    try:
        for data in first:
            Ed25519PublicKey.from_public_bytes(key.first).verify(data, f"{signed}\n".encode())
        for data in second:
            need(data[:8] == bytes(8), INVALID)
            MLDSA44PublicKey.from_public_bytes(key.second or b"").verify(data[8:], message)
    except InvalidSignature as error:
        raise Refused(INVALID) from error
    return int(size), found


# --- logs -------------------------------------------------------------------------------------------------------------


def groups(data: bytes, *, newest: bool) -> Iterable[tuple[list[bytes], bytes]]:
    """The whole groups of a segment: records and the head behind them."""
    kept = len(data.rstrip(b"\0"))
    end = kept if -(-kept // 512) * 512 < len(data) else len(data)
    place = done = 0
    records: list[bytes] = []
    while end - place >= 9:
        length, checksum, kind = (
            int.from_bytes(data[place + a : place + b], "little") for a, b in ((0, 4), (4, 8), (8, 9))
        )
        need(length <= LIMITS.get(kind, -1), ALTERED)
        payload = data[place + 9 : min(place + 9 + length, end)]
        whole = len(payload) == length
        need((zlib.crc32(bytes([kind]) + payload) == checksum) == whole and set(payload) <= ALPHABET[kind], ALTERED)
        if not whole:
            break
        place += 9 + length
        if kind == RECORD:
            records.append(payload)
        else:
            need(records, ALTERED)
            yield records, payload
            records, done = [], place
    need(newest or done == len(data), ALTERED)
    need(len(data) - done <= 1 << 24, ALTERED)


def verify(files: Mapping[str, bytes], key: Key, heads: Sequence[bytes] = ()) -> tuple[int, bytes, int]:
    """Size, root, and how much the heads from elsewhere cover; the numbers are the page's."""
    known: dict[int, bytes] = {}  # 1
    covered = 0
    for place, note in enumerate([*heads, *([files["checkpoint"]] if "checkpoint" in files else [])]):
        size, found = head(note, key, published=True)
        need(known.setdefault(size, found) == found, SPLIT)
        covered = max(covered, size) if place < len(heads) else covered
    names = sorted(name for name in files if name.endswith(".log"))  # 2
    pruned = sorted(name for name in files if name.endswith(".leaves"))
    need(all(re.fullmatch(r"\d{20}\.(log|leaves)", name, re.ASCII) for name in names + pruned), INVALID)
    leaves: list[bytes] = []
    signed = None
    strange = 0 in known and known[0] != root([])
    need(not strange, SPLIT)
    need(all(files[name] and len(files[name]) % 32 == 0 for name in pruned), INVALID)
    for name in (name for name in pruned if f"{name[:20]}.log" not in files):
        need(int(name[:20]) <= len(leaves), TRUNCATED)
        need(int(name[:20]) == len(leaves), INVALID)
        for place in range(0, len(files[name]), 32):
            leaves.append(files[name][place : place + 32])
            strange = strange or (len(leaves) in known and known[len(leaves)] != root(leaves))
    for name in names:
        need(int(name[:20]) <= len(leaves), TRUNCATED)
        need(int(name[:20]) == len(leaves), INVALID)
        for records, note in groups(files[name], newest=name == names[-1]):  # 3
            for data in records:
                fields = record(data, ALTERED)  # 4
                need(type(fields.get("v")) is int and fields["v"] == 1, ALTERED)
                need(type(fields.get("index")) is int and fields["index"] == len(leaves), ALTERED)
                time = fields.get("time")
                form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
                need(type(time) is str and re.fullmatch(form, time, re.ASCII), ALTERED)
                leaves.append(leaf(data))  # 5
                size = len(leaves)
                strange = strange or (size in known and known[size] != root(leaves))
            try:
                opened = head(note, key)  # 6
            except Refused as error:
                raise Refused(INVALID if signed is None else ALTERED) from error
            need(opened == (len(leaves), root(leaves)), ALTERED)
            signed = note
            need(not strange, SPLIT)  # 7
    need(max(known, default=0) <= len(leaves), TRUNCATED)  # 8
    need(signed is not None, INVALID)
    return len(leaves), root(leaves), covered


# --- what leaves the machine ------------------------------------------------------------------------------------------


def _said(data: bytes, names: set[str]) -> dict[str, Any]:
    try:
        value = json.loads(data)
        need(type(value) is dict and set(value) == names, INVALID)
        hashes = value["proof"]
        need(type(hashes) is list and len(hashes) <= 108, INVALID)
        need(all(type(each) is str and re.fullmatch(r"[0-9a-f]{64}", each, re.ASCII) for each in hashes), INVALID)
        need(all(type(value[name]) is str for name in names - {"index", "proof"}), INVALID)
    except (ValueError, RecursionError) as error:
        raise Refused(INVALID) from error
    return {**value, "proof": [bytes.fromhex(each) for each in hashes]}


def receipt(data: bytes, key: Key, opening_key: bytes = b"", **committed: bytes) -> dict[str, Any]:
    """Open a receipt, and what its record commits to; the record's members."""
    said = _said(data, {"index", "record", "proof", "head"})
    size, wanted = head(said["head"].encode(), key)
    raw = said["record"].encode()
    fields = record(raw, INVALID)
    index, path = fields.get("index"), said["proof"]
    need(type(index) is int, INVALID)
    need(0 <= index < size and len(path) == steps(index, size), ALTERED)
    need(rooted(index, size, leaf(raw), path) == wanted, ALTERED)
    for label, what in committed.items():
        found = blake3(label.encode() + b"\0" + what, key=opening_key).hexdigest()
        need(fields.get(label) == found, ALTERED)
    return fields


def consistency(data: bytes, key: Key) -> tuple[int, int]:
    """Open a consistency proof; both sizes."""
    said = _said(data, {"old", "new", "proof"})
    (old, before), (new, after) = (head(said[name].encode(), key, published=True) for name in ("old", "new"))
    need(0 < old <= new, SPLIT)
    if old == new:
        need(not said["proof"] and before == after, SPLIT)
    else:
        need(grown(old, new, said["proof"], before) == (before, after), SPLIT)
    return old, new
