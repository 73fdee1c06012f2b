"""Whose signatures these claim to be: one of the publishers that this site pinned, or nobody's."""

from __future__ import annotations

from collections.abc import Iterable

from pericard.errors import UntrustedPublisher
from pericard.keys import Publisher, Signature


def claimed(publishers: Iterable[Publisher], signatures: tuple[Signature, ...], *, subject: str) -> Publisher:
    """The publisher whose key ids the signatures name; where several fit in part, the one named most often.

    Says nothing of their validity: one whose signatures are not both there is told so by ``Publisher.verify``.

    Raises:
        UntrustedPublisher: none of the publishers is named.
    """
    closest = max(publishers, key=lambda publisher: publisher.claimed(signatures), default=None)
    if closest is None or not closest.claimed(signatures):
        raise UntrustedPublisher(
            f"{subject}: was not signed by a publisher that this site pinned",
            hint="compare the fingerprint of the publisher's key with the vendor by another channel, then pin it: "
            "pericard trust add",
        )
    return closest
