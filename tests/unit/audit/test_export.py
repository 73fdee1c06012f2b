from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, segment
from pericard.audit.export import export
from pericard.audit.verify import verify
from pericard.errors import AuditLogInvalid, RecordAltered
from pericard.keys import LogKey, LogVerifier

Opener = Callable[..., AuditLog]


def test_a_copy_proves_itself_while_the_log_goes_on(opened: Opener, quick: Path, key: LogKey) -> None:
    log = opened(segment_bytes=500)
    for _ in range(5):
        log.commit([{"event": "x"}] * 2)
    log.publish()
    log.commit([{"event": "later"}])
    report = export(quick / "log", quick / "copy", verifier=key.verifier)
    assert (report.size, report.covered) == (11, 10)
    log.commit([{"event": "later"}])
    again = verify(quick / "copy", verifier=LogVerifier.read(quick / "copy" / "log.pub"))
    assert again.root == report.root


def test_an_altered_log_is_found_in_the_copy(opened: Opener, quick: Path, key: LogKey) -> None:
    with opened() as log:
        log.commit([{"event": "x"}])
    path = quick / "log" / segment.file_name(0)
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(RecordAltered):
        export(quick / "log", quick / "copy", verifier=key.verifier)


def test_what_proves_nothing_is_not_copied(opened: Opener, quick: Path, key: LogKey) -> None:
    log = opened()
    with pytest.raises(AuditLogInvalid, match="has published no head"):
        export(quick / "log", quick / "copy", verifier=key.verifier)
    assert not (quick / "copy").exists()
    log.commit([{"event": "x"}])
    log.publish()
    (quick / "copy").mkdir()
    with pytest.raises(AuditLogInvalid, match="file exists"):
        export(quick / "log", quick / "copy", verifier=key.verifier)
    with pytest.raises(AuditLogInvalid, match="cannot be read as an audit log"):
        export(quick / "gone", quick / "other", verifier=key.verifier)
