"""Whom a model may be granted to: a recipient's key file, with words for what people hand in instead of one.

Nothing of a foreign file is shown but the kind that it gives itself, and that only if it is one of ours.
"""

from __future__ import annotations

import re
from pathlib import Path

from pericard.errors import KeyFileInvalid
from pericard.keys import Recipient, wipe

_LONGEST = 64 * 1024  # of a key file
_KIND = re.compile(rb"^(pericard-[a-z0-9-]{1,40})(?= )", re.MULTILINE)
_RECIPIENT = "pericard-recipient-v1"
_HINTS = {
    "pericard-identity": "that is the private half, which stays at its owner's: give identity.pub",
    "pericard-publisher-key": "that is a publisher's private key: give the hospital's identity.pub",
    "pericard-publisher": "that is a publisher's key, which verifies what it signed: give the hospital's identity.pub",
    "pericard-log": "that is the key of an audit log: give the hospital's identity.pub",
}
_FOREIGN = (
    "only X-Wing recipients are taken, the identity.pub of pericard keygen identity; age, ssh, X25519 and PEM keys "
    "protect nothing against a quantum computer"
)


def read(path: Path) -> Recipient:
    """Read a recipient's public key.

    Raises:
        KeyFileInvalid: it is missing, damaged, or a key of another kind.
    """
    try:
        return Recipient.read(path)
    except KeyFileInvalid as error:
        if isinstance(error.__cause__, OSError):
            raise
        kind = _kind(path)
        if kind is None:
            raise KeyFileInvalid(f"{path}: is no key file of ours", hint=_FOREIGN) from error
        if kind == _RECIPIENT:
            raise KeyFileInvalid(error.message, hint=_FOREIGN) from error
        hint = next((words for start, words in _HINTS.items() if kind.startswith(start)), _FOREIGN)
        raise KeyFileInvalid(f"{path}: is a {kind!r} file, wanted {_RECIPIENT!r}", hint=hint) from error


def _kind(path: Path) -> str | None:
    """The kind that a key file of ours gives itself; the file may be private, so nothing else of it is kept."""
    buffer = bytearray(_LONGEST)
    try:
        with path.open("rb", buffering=0) as file:  # a regular file: it was just read as one
            file.readinto(buffer)
        found = _KIND.search(buffer)
        return bytes(found[1]).decode("ascii") if found else None
    except OSError:
        return None
    finally:
        wipe(buffer)
