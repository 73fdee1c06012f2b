"""Make the identity file's test vectors: ``python tests/vectors/generate/identity.py [directory]``.

Seed, passphrase, salt and nonce are fixed, so the same bytes come out every time. One thing is wrong in each case;
what the members mean stands in ``tests/vectors/identity/README.md``.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pericard import canonical
from pericard.keys import Identity

SEED = bytes(range(32))
RECIPIENT = Identity(SEED).recipient.id
PASSPHRASE = "correct horse battery staple"
SALT, NONCE = bytes(range(64, 80)), bytes(range(80, 92))
LOCK = {
    "kind": "passphrase",
    "iterations": 3,
    "lanes": 4,
    "memory_kib": 65536,
    "salt": base64.b64encode(SALT).decode(),
}
WORD = "pericard-locked-identity-v1"
Body = dict[str, Any]


def locked(seed: bytes = SEED, **changes: object) -> Body:
    """A body that is right in itself, with these members changed before it is sealed."""
    body: Body = {"format": "pericard/locked-identity/v1", "lock": LOCK, "recipient": RECIPIENT, **changes}
    key = Argon2id(salt=SALT, length=32, iterations=3, lanes=4, memory_cost=65536).derive(PASSPHRASE.encode())
    sealed = NONCE + AESGCM(key).encrypt(NONCE, seed, canonical.encode(body))
    return {**body, "sealed": base64.b64encode(sealed).decode()}


def text(body: Body | bytes, word: str = WORD) -> str:
    """A file."""
    data = body if isinstance(body, bytes) else canonical.encode(body)
    return f"# identity {RECIPIENT[:16]}\n{word} {base64.b64encode(data).decode()}\n"


def altered(**lock: object) -> str:
    """A good file whose lock was changed afterwards; None takes a parameter away."""
    changed = {name: value for name, value in {**LOCK, **lock}.items() if value is not None}
    return text({**locked(), "lock": changed})


def flipped() -> Body:
    """The last bit of the tag is another one."""
    body = locked()
    sealed = bytearray(base64.b64decode(body["sealed"]))
    sealed[-1] ^= 1
    return {**body, "sealed": base64.b64encode(sealed).decode()}


INVALID, REFUSED = "key-file-invalid", "unlock-refused"
CASES: dict[str, tuple[str, str, Callable[[], str]]] = {
    "good": ("success", "A passphrase lock as it is written.", lambda: text(locked())),
    "good-plain": ("success", "A plain file.", lambda: text(SEED, "pericard-identity-v1")),
    "good-with-another-comment": ("success", "Comments mean nothing.", lambda: "# x\n\n" + text(locked())),
    "tag-altered": (REFUSED, "One bit of the tag.", lambda: text(flipped())),
    "salt-altered": (REFUSED, "Another salt gives another key.", lambda: altered(salt="A" * 22 + "==")),
    "iterations-altered": (REFUSED, "The lock is associated data and parameter in one.", lambda: altered(iterations=4)),
    "recipient-altered": (
        REFUSED,
        "The recipient is associated data.",
        lambda: text({**locked(), "recipient": "0" * 64}),
    ),
    "another-identity": (REFUSED, "It opens, and is not whom it names.", lambda: text(locked(bytes(32)))),
    "memory-over-the-limit": (INVALID, "2 GiB and a KiB.", lambda: altered(memory_kib=2 * 1024 * 1024 + 1)),
    "memory-below-the-limit": (INVALID, "Nobody writes so little.", lambda: altered(memory_kib=65535)),
    "iterations-over-the-limit": (INVALID, "17 passes.", lambda: altered(iterations=17)),
    "iterations-of-none": (INVALID, "No pass at all.", lambda: altered(iterations=0)),
    "lanes-over-the-limit": (INVALID, "17 lanes.", lambda: altered(lanes=17)),
    "iterations-as-text": (INVALID, "A number is a number.", lambda: altered(iterations="3")),
    "salt-too-short": (INVALID, "15 bytes.", lambda: altered(salt=base64.b64encode(SALT[:15]).decode())),
    "salt-not-base64": (INVALID, "No padding.", lambda: altered(salt="A" * 22)),
    "salt-missing": (INVALID, "No parameter may be missing.", lambda: altered(salt=None)),
    "parameter-unknown": (INVALID, "None may be added.", lambda: altered(pepper="x")),
    "kind-of-another-lock": (INVALID, "The site configured a passphrase.", lambda: altered(kind="tpm")),
    "kind-missing": (INVALID, "A lock has a kind.", lambda: altered(kind=None)),
    "kind-not-a-name": (INVALID, "Capital letters.", lambda: altered(kind="Passphrase")),
    "format-of-another-version": (INVALID, "v2.", lambda: text(locked(format="pericard/locked-identity/v2"))),
    "member-unknown": (INVALID, "No member may be added.", lambda: text({**locked(), "note": "x"})),
    "sealed-too-short": (
        INVALID,
        "59 bytes.",
        lambda: text({**locked(), "sealed": base64.b64encode(bytes(59)).decode()}),
    ),
    "not-canonical": (INVALID, "A space.", lambda: text(canonical.encode(locked()).replace(b":", b": ", 1))),
    "member-twice": (INVALID, "One member twice.", lambda: text(canonical.encode(locked())[:-1] + b',"sealed":""}')),
    "not-json": (INVALID, "Not JSON.", lambda: text(b"sealed")),
    "body-over-the-limit": (INVALID, "16 385 bytes.", lambda: text(b"{" + b" " * 16383 + b"}")),
    "two-lines": (INVALID, "Two keys.", lambda: text(locked()) * 2),
    "empty": (INVALID, "Comments alone.", lambda: "# nothing\n"),
    "base64-without-padding": (
        INVALID,
        "Padding is needed.",
        lambda: text(SEED, "pericard-identity-v1").replace("=", ""),
    ),
    "plain-too-short": (INVALID, "31 bytes.", lambda: text(SEED[:31], "pericard-identity-v1")),
    "publisher-key": (INVALID, "Another kind of key.", lambda: text(bytes(64), "pericard-publisher-key-v1")),
}


def main(directory: Path) -> None:
    """Write ``vectors.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    cases = [
        {"name": name, "why": why, "expect": expect, "file": make()} for name, (expect, why, make) in CASES.items()
    ]
    value = {"seed": SEED.hex(), "recipient": RECIPIENT, "passphrase": PASSPHRASE, "cases": cases}
    (directory / "vectors.json").write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "identity")
