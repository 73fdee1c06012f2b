"""Make the vectors of what lies beside a sealed model: ``python …/generate/sealed_beside.py [--anew] [directory]``.

Detached grants (``grants/``) and notices (``notices/``), one failure per file; what is there is kept, as for the sealed
models whose keys they use. They are written here byte by byte, not by the product's writers.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sealed import (
    ARCHIVE,
    DAY,
    FILE_KEY,
    IDENTITY,
    NOW,
    PUBLISHER,
    STRANGER,
    Grant,
    edited,
    encoded,
    flip,
    grant_of,
    sign,
    unused_bits,
    whole,
)

from pericard import canonical
from pericard.keys import PublisherKey, Signature

VECTORS: dict[str, tuple[Callable[[], bytes], dict[str, str]]] = {}
MANIFEST = whole().manifest
FLOOR = 4


def block(signatures: tuple[Signature, ...]) -> bytes:
    """A signature block."""
    parts = (struct.pack("<B32sH", one.algorithm, one.key_id, len(one.value)) + one.value for one in signatures)
    return bytes([len(signatures)]) + b"".join(parts)


def entry(body: bytes, signatures: tuple[Signature, ...], *, length: int | None = None) -> bytes:
    """Length, body, signature block: one grant, or a notice."""
    return struct.pack("<I", len(body) if length is None else length) + body + block(signatures)


def section(*grants: Grant, count: int | None = None) -> bytes:
    """A detached grant's file."""
    return struct.pack("<H", len(grants) if count is None else count) + b"".join(entry(*one) for one in grants)


def ours(identity: Any = IDENTITY, *, manifest: bytes = MANIFEST, **how: Any) -> Grant:
    """A good grant."""
    return grant_of(manifest, identity, **how)


def regranted(**changes: Any) -> bytes:
    """A good grant but for some members; signed again."""
    body = edited(ours()[0], **changes)
    return section((body, sign(body)))


def rewritten(old: bytes, new: bytes) -> bytes:
    """A good grant but for some bytes; signed like this."""
    body = ours()[0].replace(old, new, 1)
    return section((body, sign(body)))


def with_signatures(change: Callable[[Signature, Signature], tuple[Signature, ...]]) -> bytes:
    """A good grant but for its signatures."""
    body, signatures = ours()
    return section((body, change(*signatures)))


def turned(signature: Signature) -> Signature:
    """One bit of a signature."""
    return Signature(signature.algorithm, signature.key_id, flip(signature.value, 5))


def wrapped_for_another() -> bytes:
    """The archive's grant under our name."""
    body = edited(ours(ARCHIVE)[0], recipient=IDENTITY.recipient.id)
    return section((body, sign(body)))


def notice(by: PublisherKey = PUBLISHER, **changes: Any) -> bytes:
    """What a good notice says but for some members."""
    fields = {"format": "pericard/notice/v1", "publisher": by.publisher.id, "model": "vector", "floor": FLOOR}
    return canonical.encode(fields | {"issued": NOW} | changes)


def noticed(body: bytes, by: PublisherKey = PUBLISHER) -> bytes:
    """A notice's file."""
    return entry(body, sign(body, "pericard/v1/notice", by))


def notice_with(change: Callable[[Signature, Signature], tuple[Signature, ...]]) -> bytes:
    """A good notice but for its signatures."""
    return entry(notice(), change(*sign(notice(), "pericard/v1/notice")))


def shorter(**changes: Any) -> bytes:
    """A good notice without a member."""
    fields = canonical.decode(notice(**changes), limit=1 << 14)
    del fields["issued"]
    return noticed(canonical.encode(fields))


def vector(name: str, expect: str, why: str, make: Callable[[], bytes], **headers: object) -> None:
    """Register a vector below ``grants/`` or ``notices/``."""
    now = {"now": str(NOW)} if name.startswith("grants/") else {}
    about = {"expect": expect, "why": why} | now | {key: str(value) for key, value in headers.items()}
    VECTORS[name] = (make, about)


def grant(name: str, expect: str, why: str, make: Callable[[], bytes], **headers: object) -> None:
    """Register a detached grant."""
    vector(f"grants/{name}", expect, why, make, **headers)


def withdrawal(name: str, expect: str, why: str, make: Callable[[], bytes], **headers: object) -> None:
    """Register a notice."""
    vector(f"notices/{name}", expect, why, make, **headers)


# fmt: off

# detached grants that are good
grant("good", "success", "One grant, ours.", lambda: section(ours()), licence="valid")
grant("good-with-another-before-it", "success", "The archive's once more, then ours.",
      lambda: section(ours(ARCHIVE), ours()), licence="valid")
grant("good-in-grace", "success", "The last second of the grace days.", lambda: section(ours()), licence="grace",
      now=NOW + 44 * DAY)
grant("good-of-which-one-is-over", "success", "Of two for us, one has ended.",
      lambda: section(ours(not_after=NOW - 1, grace_days=0), ours()), licence="valid")

# framing
grant("empty", "bad-grant", "No byte at all.", bytes)
grant("of-no-grant", "bad-grant", "The count is 0.", section)
grant("cut", "bad-grant", "The last byte is missing.", lambda: section(ours())[:-1])
grant("bytes-after", "bad-grant", "One byte more.", lambda: section(ours()) + b"\0")
grant("count-too-high", "bad-grant", "It counts two grants and holds one.", lambda: section(ours(), count=2))
grant("count-too-low", "bad-grant", "It counts one grant and holds two.",
      lambda: section(ours(ARCHIVE), ours(), count=1))
grant("body-of-no-length", "bad-grant", "A grant of no bytes.", lambda: b"\1\0" + entry(b"", ours()[1]))
grant("body-over-the-limit", "bad-grant", "16 KiB and one byte.", lambda: section((bytes(16385), sign(bytes(16385)))))
grant("signature-of-unknown-algorithm", "bad-grant", "Algorithm 3 does not exist.",
      lambda: with_signatures(lambda ed, ml: (Signature(3, ed.key_id, ed.value), ml)))
grant("signature-of-another-length", "bad-grant", "An Ed25519 signature of 65 bytes.",
      lambda: with_signatures(lambda ed, ml: (Signature(1, ed.key_id, ed.value + b"\0"), ml)))
grant("a-sealed-model", "bad-grant", "The sealed model itself.", lambda: whole().data())

# signatures
grant("no-signature", "bad-signature", "The block holds none.", lambda: with_signatures(lambda *_: ()))
grant("by-another-publisher", "bad-signature", "Made and signed by somebody who knows the file key.",
      lambda: section((body := ours()[0], sign(body, by=STRANGER))))
grant("with-a-later-end", "bad-signature", "The last day was edited.",
      lambda: section((edited((made := ours())[0], not_after=NOW + 300 * DAY), made[1])))
grant("ed25519-altered", "bad-signature", "One bit of the Ed25519 signature.",
      lambda: with_signatures(lambda ed, ml: (turned(ed), ml)))
grant("ml-dsa-altered", "bad-signature", "One bit of the ML-DSA-65 signature.",
      lambda: with_signatures(lambda ed, ml: (ed, turned(ml))))
grant("signed-once", "bad-signature", "Ed25519 alone is not enough here either.",
      lambda: with_signatures(lambda ed, _: (ed,)))
grant("signed-as-a-notice", "bad-signature", "Signed for the notices' domain.",
      lambda: section((body := ours()[0], sign(body, "pericard/v1/notice"))))
grant("somebody-elses-altered", "bad-signature", "Ours is good; but every grant is verified.",
      lambda: section(ours(), (flip((made := ours(ARCHIVE))[0], 60), made[1])))

# what it says
grant("for-another-file", "bad-grant", "A good grant of the same publisher for another manifest.",
      lambda: section(ours(manifest=edited(MANIFEST, created=5))))
grant("not-canonical", "bad-grant", "A space after the first colon; signed like this.", lambda: rewritten(b":", b": "))
grant("with-a-member-twice", "bad-grant", "The grace days stand twice; signed like this.",
      lambda: rewritten(b'"grace_days":14,', b'"grace_days":14,"grace_days":14,'))
grant("with-an-unknown-field", "bad-grant", "Signed, and nobody knows what it would mean.", lambda: regranted(hosts=5))
grant("that-ends-before-it-begins", "bad-grant", "Signed by mistake.", lambda: regranted(not_after=NOW - 2 * DAY))
grant("with-too-many-grace-days", "bad-grant", "367 days; signed.", lambda: regranted(grace_days=367))
grant("with-unused-bits", "bad-grant", "The last bits of the base64 are not zero; signed.",
      lambda: section(unused_bits().grants[0]))

# the site's rules, and the file key
grant("for-somebody-else", "no-grant", "The archive's once more.", lambda: section(ours(ARCHIVE)))
grant("before-the-first-second", "licence-not-yet-valid", "One second too early.", lambda: section(ours()),
      now=NOW - DAY - 1)
grant("after-the-grace-days", "licence-expired", "One second too late.",
      lambda: section(ours()), now=NOW + 44 * DAY + 1)
grant("key-wrapped-for-somebody-else", "bad-grant",
      "It names us; its ciphertext is the archive's.", wrapped_for_another)
grant("key-wrapped-for-other-terms", "bad-grant", "Other terms, signed; the ciphertext is bound to the old ones.",
      lambda: regranted(grace_days=15))
grant("another-file-key", "key-commitment-mismatch", "It holds another key than the manifest commits to.",
      lambda: section(ours(key=hashlib.sha256(FILE_KEY).digest())))

# notices that are good
withdrawal("good", "success", "Sequences below 4 are withdrawn.",
           lambda: noticed(notice()), model="vector", floor=FLOOR)
withdrawal("good-with-signatures-in-the-other-order", "success", "ML-DSA-65 first: the order says nothing.",
           lambda: notice_with(lambda ed, ml: (ml, ed)), model="vector", floor=FLOOR)
withdrawal("good-with-the-highest-floor", "success", "2^53 - 1: every version but the last possible one.",
           lambda: noticed(notice(floor=(1 << 53) - 1)), model="vector", floor=(1 << 53) - 1)

# framing
withdrawal("empty", "bad-notice", "No byte at all.", bytes)
withdrawal("cut", "bad-notice", "The last byte is missing.", lambda: noticed(notice())[:-1])
withdrawal("bytes-after", "bad-notice", "One byte more.", lambda: noticed(notice()) + b"\0")
withdrawal("two-in-one", "bad-notice", "Two good notices, one after the other.", lambda: noticed(notice()) * 2)
withdrawal("of-no-length", "bad-notice", "The body has no bytes.", lambda: noticed(b""))
withdrawal("too-long", "bad-notice", "A body of 16 KiB and one byte; signed.", lambda: noticed(bytes(16385)))
withdrawal("length-beyond-the-file", "bad-notice", "The length says more than there is.",
           lambda: entry(notice(), sign(notice(), "pericard/v1/notice"), length=16384))
withdrawal("signature-of-unknown-algorithm", "bad-notice", "Algorithm 3 does not exist.",
           lambda: notice_with(lambda ed, ml: (Signature(3, ed.key_id, ed.value), ml)))
withdrawal("a-grant", "bad-notice", "A detached grant in its place.", lambda: section(ours()))

# signatures
withdrawal("no-signature", "untrusted-publisher", "The block holds none.", lambda: notice_with(lambda *_: ()))
withdrawal("by-a-stranger", "untrusted-publisher", "Signed by somebody whom nobody pinned, in his own name.",
           lambda: noticed(notice(STRANGER), STRANGER))
withdrawal("by-a-stranger-in-our-name", "untrusted-publisher",
           "Signed by somebody else; it names the pinned publisher.",
           lambda: noticed(notice(), STRANGER))
withdrawal("floor-altered", "bad-signature", "Another floor under the old signatures.",
           lambda: entry(notice(floor=9), sign(notice(), "pericard/v1/notice")))
withdrawal("ed25519-altered", "bad-signature", "One bit of the Ed25519 signature.",
           lambda: notice_with(lambda ed, ml: (turned(ed), ml)))
withdrawal("ml-dsa-altered", "bad-signature", "One bit of the ML-DSA-65 signature.",
           lambda: notice_with(lambda ed, ml: (ed, turned(ml))))
withdrawal("ml-dsa-missing", "bad-signature", "Ed25519 alone is not enough.", lambda: notice_with(lambda ed, _: (ed,)))
withdrawal("ed25519-twice", "bad-signature", "Both are there, one of them twice.",
           lambda: notice_with(lambda ed, ml: (ed, ed, ml)))
withdrawal("signed-as-a-manifest", "bad-signature", "Signed for the manifests' domain.",
           lambda: entry(notice(), sign(notice(), "pericard/v1/manifest")))

# what it says; all of it signed by the pinned publisher
withdrawal("of-another-publisher", "bad-notice", "It names somebody whose models are not the signer's.",
           lambda: noticed(notice(publisher=STRANGER.publisher.id)))
withdrawal("not-canonical", "bad-notice", "A space after the first colon.",
           lambda: noticed(notice().replace(b":", b": ", 1)))
withdrawal("with-a-member-twice", "bad-notice", "The floor stands twice.",
           lambda: noticed(notice().replace(b'"floor":4,', b'"floor":4,"floor":4,')))
withdrawal("with-a-fraction", "bad-notice", "The floor has a fraction.",
           lambda: noticed(notice().replace(b'"floor":4,', b'"floor":4.0,')))
withdrawal("with-true-for-a-number", "bad-notice", "True is not 1.", lambda: noticed(notice(floor=True)))
withdrawal("with-an-unknown-field", "bad-notice", "Nobody knows what it would mean.",
           lambda: noticed(notice(until=NOW)))
withdrawal("without-a-time", "bad-notice", "Every member is there.", shorter)
withdrawal("of-another-format", "bad-notice", "For a later version.",
           lambda: noticed(notice(format="pericard/notice/v2")))
withdrawal("of-no-model", "bad-notice", "A name that no model has.", lambda: noticed(notice(model="")))
withdrawal("floor-of-nothing", "bad-notice", "A floor of 0 withdraws nothing.", lambda: noticed(notice(floor=0)))
withdrawal("floor-above-all", "bad-notice", "2^53.", lambda: noticed(notice(floor=1 << 53)))
withdrawal("issued-too-late", "bad-notice", "A time of 2^40.", lambda: noticed(notice(issued=1 << 40)))
# fmt: on


def generate(target: Path, *, anew: bool = False) -> None:
    """Write the vectors that are missing below ``target``, or all of them; and remove what is none any more."""
    for folder in ("grants", "notices"):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for path in (target / folder).glob("*.vector"):
            if f"{folder}/{path.stem}" not in VECTORS:
                path.unlink()
    for name, (make, about) in VECTORS.items():
        path = target / f"{name}.vector"
        if anew or not path.exists():
            path.write_bytes(encoded(about, make()))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--anew"]
    generate(Path(words[0]) if words else Path(__file__).parents[1] / "sealed", anew="--anew" in sys.argv)
