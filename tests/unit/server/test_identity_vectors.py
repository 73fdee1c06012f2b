"""The identity file's vectors, with the product's reader and with one written from the specification alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pericard.errors import PericardError
from pericard.unlock import LockedFile, PlainFile
from pericard.unlock.passphrase import PassphraseLock

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/vectors/identity/vectors.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_the_products_reader(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / "identity.key"
    path.touch(mode=0o600)
    path.write_text(case["file"])
    lock = PassphraseLock(lambda: bytearray(VECTORS["passphrase"].encode()))
    plain = "\npericard-locked-identity-v1" not in case["file"]
    source = PlainFile(path) if plain else LockedFile(path, "passphrase", lock)

    try:
        outcome = bytes(source.seed()).hex()
    except PericardError as error:
        outcome = error.code

    assert outcome == (VECTORS["seed"] if case["expect"] == "success" else case["expect"])


@pytest.mark.parametrize("name", CASES)
def test_a_reader_of_the_specification(name: str) -> None:
    case = CASES[name]
    outcome = second_reader(case["file"], VECTORS["passphrase"].encode())
    assert outcome == (bytes.fromhex(VECTORS["seed"]) if case["expect"] == "success" else case["expect"])


def test_the_vectors_are_what_the_generator_makes(tmp_path: Path) -> None:
    generator = ROOT / "tests/vectors/generate/identity.py"
    subprocess.run([sys.executable, str(generator), str(tmp_path)], check=True, timeout=60)
    assert json.loads((tmp_path / "vectors.json").read_text()) == VECTORS


def second_reader(text: str, passphrase: bytes) -> bytes | str:
    """The seed, or a code; nothing of the product's own code."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        return "key-file-invalid"
    word, _, body = lines[0].partition(" ")
    data = one_form(body)
    if data is None:
        return "key-file-invalid"
    if word == "pericard-identity-v1":
        return data if len(data) == 32 else "key-file-invalid"
    if word != "pericard-locked-identity-v1" or len(data) > 16384:
        return "key-file-invalid"
    found = members(data)
    return "key-file-invalid" if found is None else unlocked(found, passphrase)


def one_form(text: object) -> bytes | None:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text) or len(text) % 4:
        return None
    data = base64.b64decode(text)
    return data if base64.b64encode(data).decode() == text else None


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def members(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {"format", "lock", "recipient", "sealed"}:
        return None
    lock, sealed = found["lock"], one_form(found["sealed"])
    right = (
        canonical(found) == data
        and found["format"] == "pericard/locked-identity/v1"
        and re.fullmatch(r"[0-9a-f]{64}", found["recipient"])
        and set(lock) == {"kind", "iterations", "lanes", "memory_kib", "salt"}
        and lock["kind"] == "passphrase"
        and all(isinstance(lock[name], int) for name in ("iterations", "lanes", "memory_kib"))
        and 1 <= lock["iterations"] <= 16
        and 1 <= lock["lanes"] <= 16
        and 65_536 <= lock["memory_kib"] <= 2_097_152
        and len(one_form(lock["salt"]) or b"") == 16
        and len(sealed or b"") == 12 + 32 + 16
    )
    return found if right else None


def unlocked(found: dict[str, Any], passphrase: bytes) -> bytes | str:
    lock, sealed = found["lock"], base64.b64decode(found["sealed"])
    key = Argon2id(
        salt=base64.b64decode(lock["salt"]), length=32, iterations=lock["iterations"], lanes=lock["lanes"],
        memory_cost=lock["memory_kib"],
    ).derive(passphrase)  # fmt: skip
    bound = canonical({name: value for name, value in found.items() if name != "sealed"})
    try:
        seed = AESGCM(key).decrypt(sealed[:12], sealed[12:], bound)
    except InvalidTag:
        return "unlock-refused"
    expanded = hashlib.shake_256(seed).digest(96)
    public = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).public_key().public_bytes_raw()
    public += x25519.X25519PrivateKey.from_private_bytes(expanded[64:]).public_key().public_bytes_raw()
    return seed if hashlib.sha256(public).hexdigest() == found["recipient"] else "unlock-refused"
