"""A second reader of sealed models, from ``docs/spec/sealed-model.md`` alone; plaintext stays in memory: for tests.

``members.json`` has its tables. Text there is a pattern, or names another rule; ``[a, b]`` is an integer from a to b;
``[a, b, R]`` a list of a to b values of R; ``[null, R]`` null or R; ``{…}`` an object with these members and no other,
of which those with a ``?`` may be missing; ``{"*": [N, R]}`` one with any number of members, their names of N and their
values of R.
"""

import base64
import hmac
import json
import math
import re
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BAD, MIB = "malformed-sealed-model", 1 << 20
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
RULES: dict[str, Any] = json.loads(Path(__file__).with_name("members.json").read_text())
Json, Block = dict[str, Any], list[tuple[int, bytes, bytes]]


class Refused(Exception): ...  # by its code


def need(true: object, code: str) -> None:
    if not true:
        raise Refused(code)


def attempt(code: str, call: Any, *given: Any) -> Any:
    try:
        return call(*given)
    except (InvalidSignature, InvalidTag, ValueError, RecursionError) as error:
        raise Refused(code) from error


def canonical(value: Any, below: int = 0) -> str:
    if below <= 16 and type(value) is dict:
        return "{" + ",".join(f"{canonical(k)}:{canonical(v, below + 1)}" for k, v in sorted(value.items())) + "}"
    if below <= 16 and type(value) is list:
        return "[" + ",".join(canonical(item, below + 1) for item in value) + "]"
    if below > 16 or not (value is None or type(value) in {str, bool} or fits(value, [-(2**63), 2**63 - 1])):
        raise ValueError  # as encode() does for half of a surrogate pair
    return json.dumps(value.encode().decode() if type(value) is str else value)


def parse(data: bytes, code: str) -> Json:
    value = attempt(code, json.loads, data)
    need(type(value) is dict and attempt(code, canonical, value).encode() == data, code)
    return dict(value)


def fits(value: Any, rule: Any) -> bool:
    match RULES.get(rule, rule) if isinstance(rule, str) else rule:
        case str(pattern):
            return type(value) is str and re.fullmatch(pattern, value) is not None
        case [None, inner]:
            return value is None or fits(value, inner)
        case [least, most]:
            return type(value) is int and least <= value <= most
        case [least, most, inner]:
            return type(value) is list and least <= len(value) <= most and all(fits(item, inner) for item in value)
        case {"*": [name, inner]}:
            return type(value) is dict and all(fits(k, name) and fits(v, inner) for k, v in value.items())
        case whole:
            known = {k.rstrip("?"): inner for k, inner in whole.items()}
            there = type(value) is dict and {k for k in whole if k[-1] != "?"} <= value.keys() <= known.keys()
            return there and all(fits(value[k], known[k]) for k in value)


class Cursor:  # bytes taken from the front; what is not there is refused with one code
    def __init__(self, data: bytes, code: str) -> None:
        self.data, self.code = data, code

    def take(self, size: int) -> bytes:
        need(size <= len(self.data), self.code)
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def number(self, size: int, least: int = 0, most: int = 2**32) -> int:
        need(least <= (found := int.from_bytes(self.take(size), "little")) <= most, self.code)
        return found

    def block(self) -> Block:
        found = [(self.number(1), self.take(32), self.take(self.number(2))) for _ in range(self.number(1))]
        need(all({1: 64, 2: 3309}.get(algorithm) == len(signature) for algorithm, _, signature in found), self.code)
        return found

    def signed(self, count: int) -> list[tuple[bytes, Block]]:
        found = [(self.take(self.number(4, 1, 16 << 10)), self.block()) for _ in range(count)]
        need(not self.data, self.code)
        return found


def signer(kind: str, data: bytes, block: Block, publishers: list[bytes], unknown: str) -> bytes:
    """Whom the block names most often, after both signatures; ``unknown`` is the code where it names nobody."""
    ids = {p: [(n, sha256(bytes([n]) + key).digest()) for n, key in ((1, p[:32]), (2, p[32:]))] for p in publishers}
    found = sorted(entry[:2] for entry in block)
    need(any(entry in each for each in ids.values() for entry in found), unknown)
    publisher = max(ids, key=lambda p: sum(entry in ids[p] for entry in found))
    need(found == ids[publisher], "bad-signature")
    ed, ml = ed25519.Ed25519PublicKey.from_public_bytes, mldsa.MLDSA65PublicKey.from_public_bytes
    for algorithm, _, signature in block:
        key = ed(publisher[:32]) if algorithm == 1 else ml(publisher[32:])
        attempt("bad-signature", key.verify, signature, f"pericard/v1/{kind}\0".encode() + data)
    return publisher


def read_grant(body: bytes, block: Block, publisher: bytes, manifest: str) -> Json:
    signer("grant", body, block, [publisher], "bad-signature")
    need(fits(grant := parse(body, "bad-grant"), "grant"), "bad-grant")
    need(grant["manifest"] == manifest and grant["not_before"] < grant["not_after"], "bad-grant")
    return grant


def read_notice(data: bytes, publishers: list[bytes]) -> Json:
    ((body, block),) = Cursor(data, "bad-notice").signed(1)
    publisher = signer("notice", body, block, publishers, "untrusted-publisher")
    notice = parse(body, "bad-notice")
    need(fits(notice, "notice") and notice["publisher"] == sha256(publisher).hexdigest(), "bad-notice")
    return notice


def read_manifest(data: bytes, publisher: bytes) -> Json:
    need(fits(manifest := parse(data, BAD), "manifest"), BAD)
    inputs, signal, batch, payload = (manifest[name] for name in ("inputs", "signal", "batch", "payload"))
    need(manifest["publisher"]["id"] == sha256(publisher).hexdigest(), BAD)
    need(manifest["model"]["floor"] <= manifest["model"]["sequence"], BAD)
    need(all(len({t["name"] for t in tensors}) == len(tensors) for tensors in (inputs, manifest["outputs"])), BAD)
    for first, *others in (tensor["shape"] for tensor in inputs + manifest["outputs"]):
        need(first == -1 and min(others, default=1) > 0 and math.prod(others) <= 2**40, BAD)
    need(not signal or [(len(t["shape"]), t["shape"][1:2]) for t in inputs] == [(3, [len(signal["leads"])])], BAD)
    need(batch["buckets"] == sorted(set(batch["buckets"])) and batch["buckets"][-1] == batch["max"], BAD)
    if host := manifest["runtime"].get("host"):
        need(host["cpu_flags"] == sorted(set(host["cpu_flags"])) and any(host.values()), BAD)
    need(len(payload["chunks"]) == -(-payload["size"] // MIB), BAD)
    return manifest


def read_index(plain: bytes) -> Json:
    cursor = Cursor(plain, BAD)
    index = parse(cursor.take(cursor.number(4, 0, 64 * MIB)), BAD)
    need(fits(index, "index") and len({t["name"] for t in index["tensors"]}) == len(index["tensors"]), BAD)
    end, answers = len(plain) - len(cursor.data), index["known_answers"]
    for part in (index["graph"], *index["tensors"], *(t for a in answers for t in a["inputs"] + a["outputs"])):
        need(part["offset"] == -(-end // 64) * 64, BAD)
        need("shape" not in part or part["size"] == math.prod(part["shape"]) * RULES["bytes"][part["dtype"]], BAD)
        end = part["offset"] + part["size"]
    need(end == len(plain), BAD)
    return index


def numbers(version: str) -> list[int]:
    return [int(part) for part in f"{version}.0.0.0".split(".")][:4]


def suits(asked: Json, flags: tuple[str, ...], cuda: dict[str, str] | None) -> bool:
    """Whether a host has what is asked: the flags of its CPU, and its versions if it computes with CUDA."""
    least = {name: asked[name] for name in ("driver", "cuda", "cudnn") if cuda and asked.get(name)}
    late = [bool(cuda and cuda.get(name)) and numbers(cuda[name]) >= numbers(least[name]) for name in least]
    return all(late) and set(flags).issuperset(asked.get("cpu_flags", ()))


def licence(grant: Json, now: int) -> str:
    ends = grant["not_before"] - 1, grant["not_after"], grant["not_after"] + grant["grace_days"] * 86_400
    return ("licence-not-yet-valid", "valid", "grace", "licence-expired")[sum(now > end for end in ends)]


def decrypt(payload: bytes, manifest: Json, grant: Json, seed: bytes) -> bytes:
    secret = shake_256(seed).digest(96)
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(secret[:64])
    xwing = hpke.MLKEM768X25519PrivateKey(kem, x25519.X25519PrivateKey.from_private_bytes(secret[64:]))
    info = b"pericard/v1/wrap\0" + canonical({k: v for k, v in grant.items() if k != "wrapped_key"}).encode()
    file_key = attempt("bad-grant", SUITE.decrypt, base64.b64decode(grant["wrapped_key"]), xwing, info)  # (7)
    file_id, chunks, plain = bytes.fromhex(manifest["file_id"]), manifest["payload"]["chunks"], b""
    prk, labels = hmac.digest(file_id, file_key, "sha512"), (b"commitment\1", b"payload\1", b"nonce\1")  # HKDF
    commitment, key, base = (hmac.digest(prk, b"pericard/v1/" + label, "sha512")[:32] for label in labels)
    need(commitment.hex() == manifest["payload"]["commitment"], "key-commitment-mismatch")  # (8)
    for i, digest in enumerate(chunks):  # (9)
        stored, last = payload[i * (MIB + 16) :][: MIB + 16], i == len(chunks) - 1
        need(sha256(stored).hexdigest() == digest, "corrupt-payload")
        nonce, about = int.from_bytes(base[:12], "big") ^ (2 * i + last), file_id + i.to_bytes(8, "big") + bytes([last])
        plain += attempt("corrupt-payload", AESGCM(key).decrypt, nonce.to_bytes(12, "big"), stored, about)
    return plain


def open_model(data: bytes, publishers: list[bytes], seed: bytes, recipient: str, *, now: int, runtime: str,
               floor: int = 0, until: int = 2**63, detached: tuple[bytes, ...] = (), flags: tuple[str, ...] = (),
               cuda: dict[str, str] | None = None) -> Json:  # fmt: skip
    """Steps 1 to 10 with the site's rules; ``floor`` is remembered, and ``until`` is when trust in the key ends."""
    need(data[:8] == b"PERICRD\1" and len(data) >= 20, "not-a-sealed-model")  # (1)
    cursor = Cursor(data[8:], BAD)
    sizes = [cursor.number(4, 1, limit) for limit in (4 * MIB, 16 << 10, 32 * MIB)]
    body, signatures, grants = (Cursor(cursor.take(size), BAD) for size in sizes)  # (2)
    block, embedded = signatures.block(), grants.signed(grants.number(2))
    need(not signatures.data and not any(cursor.take(-(20 + sum(sizes)) % 4096)), BAD)
    publisher = signer("manifest", body.data, block, publishers, "untrusted-publisher")  # (3)
    manifest, digest = read_manifest(body.data, publisher), sha256(body.data).hexdigest()  # (4)
    granted = [read_grant(*grant, publisher, digest) for grant in embedded]  # (5), and then (6)
    need(len(cursor.data) == manifest["payload"]["size"] + 16 * len(manifest["payload"]["chunks"]), "corrupt-payload")
    for section in (Cursor(file, "bad-grant") for file in detached):
        granted += [read_grant(*grant, publisher, digest) for grant in section.signed(section.number(2, 1))]
    need(now <= until, "untrusted-publisher")
    need(manifest["model"]["sequence"] >= floor, "version-withdrawn")
    need(manifest["runtime"]["required"] in {None, runtime}, "runtime-not-allowed")
    need(suits(manifest["runtime"].get("host", {}), flags, cuda), "runtime-not-allowed")
    need(ours := [grant for grant in granted if grant["recipient"] == recipient], "no-grant")
    grant = min(ours, key=lambda one: (licence(one, now) not in {"valid", "grace"}, -one["not_after"]))
    need((state := licence(grant, now)) in {"valid", "grace"}, state)
    plain = decrypt(cursor.data, manifest, grant, seed)  # (7) (8) (9)
    return {"manifest": manifest, "plaintext": plain, "index": read_index(plain), "licence": state}  # (10)
