from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, checkpoint
from pericard.audit.consistency import Consistency, consistency, open_consistency
from pericard.errors import AuditLogInvalid, SplitView
from pericard.keys import LogKey, LogVerifier

Opener = Callable[..., AuditLog]


@pytest.fixture
def heads(opened: Opener, key: LogKey) -> list[bytes]:
    """Signed heads of a log, smallest first; the last one is published."""
    log, made = opened(segment_bytes=2000), []
    for count in (1, 3, 2, 300, 1):
        log.commit([{"event": "x"}] * count)
        assert log.head is not None
        made.append(checkpoint.attest(log.head, key))
    published = log.publish()
    assert published is not None
    return [*made[:-1], published]


def test_every_head_continues_every_earlier_one(heads: list[bytes], quick: Path, key: LogKey) -> None:
    for place, old in enumerate(heads):
        for new in heads[place:]:
            made = Consistency.from_json(consistency(quick / "log", old, new).to_json())
            first, second = open_consistency(made, verifier=key.verifier)
            assert (first.size, second.size) == (
                checkpoint.open_head(old, first.origin, key.verifier).size,
                second.size,
            )
    assert consistency(quick / "log", heads[0]).new == heads[-1]  # the published one


def test_heads_of_two_histories_are_not_proven(heads: list[bytes], quick: Path, key: LogKey, opened: Opener) -> None:
    other = opened("other")
    for count in (1, 3, 2, 300, 1):
        other.commit([{"event": "y"}] * count)
    strange = other.publish()
    assert strange is not None
    with pytest.raises(SplitView, match="not proven to continue"):
        consistency(quick / "log", heads[1], strange)
    with pytest.raises(SplitView, match="not proven to continue"):
        consistency(quick / "other", heads[1], strange)
    made = consistency(quick / "log", heads[1], heads[3])
    for changed in (
        Consistency(made.old, strange, made.proof),
        Consistency(heads[0], made.new, made.proof),
        Consistency(made.old, made.new, made.proof[1:]),
        Consistency(made.old, made.new, (*made.proof, bytes(32))),
        Consistency(made.old, made.new, (bytes(32), *made.proof[1:])),
        Consistency(made.new, made.old, made.proof),
    ):
        with pytest.raises(SplitView):
            open_consistency(changed, verifier=key.verifier)
    with pytest.raises(AuditLogInvalid, match="wanted"):
        open_consistency(made, verifier=LogKey(bytes(64)).verifier)
    alone = Consistency(made.old, made.new[: made.new.rindex(b"\xe2\x80\x94")], made.proof)
    with pytest.raises(AuditLogInvalid, match="has no ML-DSA-44 signature"):
        open_consistency(alone, verifier=key.verifier)
    open_consistency(alone, verifier=LogVerifier(key.verifier.public))


def test_what_cannot_be_proven_is_refused(heads: list[bytes], quick: Path, opened: Opener) -> None:
    with pytest.raises(AuditLogInvalid, match="cannot continue"):
        consistency(quick / "log", heads[2], heads[1])
    with pytest.raises(AuditLogInvalid, match="not a signed checkpoint"):
        consistency(quick / "log", b"junk")
    (quick / "none").mkdir()
    with pytest.raises(AuditLogInvalid, match="no head yet"):
        consistency(quick / "none", heads[0])
    with pytest.raises(AuditLogInvalid, match="is not in the log"):
        consistency(quick / "none", heads[0], heads[1])


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"old":"a","new":"b","proof":["x"]}', b'{"old":"a","new":"b","proof":[],"x":1}'],
)
def test_what_is_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(AuditLogInvalid, match="consistency proof: is not one"):
        Consistency.from_json(data)
