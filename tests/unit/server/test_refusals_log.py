"""The text log of refused credentials: its lines, its bounds, its rotation."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pericard.edge import refusals_log
from pericard.edge.refusals_log import RefusalsLog, lines
from pericard.errors import ConfigError

NOON = datetime(2026, 11, 29, 12, 0, 0, 123_456, UTC)
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z pericard-auth refused code=unauthenticated "
    r"address=([0-9a-f.:]+) count=(\d+)\n"
)


def found(counts: dict[str, int]) -> tuple[Counter[str], str]:
    """Sums by address as the lines have them, and the last line."""
    written = lines(Counter(counts), NOON)
    matches = [match for line in written if (match := LINE.fullmatch(line))]
    sums: Counter[str] = Counter()
    for match in matches:
        sums[match[1]] += int(match[2])
    return sums, written[-1]


def test_a_line_says_when_and_who_and_how_often() -> None:
    assert lines(Counter({"192.0.2.1": 2, "2001:DB8::0:1": 1}), NOON) == [
        "2026-11-29T12:00:00.123Z pericard-auth refused code=unauthenticated address=192.0.2.1 count=1\n",
        "2026-11-29T12:00:00.123Z pericard-auth refused code=unauthenticated address=192.0.2.1 count=1\n",
        "2026-11-29T12:00:00.123Z pericard-auth refused code=unauthenticated address=2001:db8::1 count=1\n",
    ]


def test_a_flood_is_a_few_lines_and_its_count_is_exact() -> None:
    written = lines(Counter({"192.0.2.1": 100_000}), NOON)

    assert len(written) == 5
    assert written[-1].endswith(" count=99996\n")


def test_a_flood_of_addresses_is_bounded_and_its_count_is_exact() -> None:
    counts = {f"10.0.{place // 250}.{place % 250}": 9 for place in range(2000)}
    sums, last = found(counts)

    assert len(lines(Counter(counts), NOON)) == 101
    assert last == f"2026-11-29T12:00:00.123Z pericard-auth suppressed count={18_000 - sums.total()}\n"


@pytest.mark.parametrize("address", ["", "localhost", "192.0.2.1 address=192.0.2.9", "1.2.3.4\n", "é", "/run/sock"])
def test_what_is_no_address_stands_in_no_line(address: str) -> None:
    sums, last = found({address: 3, "192.0.2.1": 1})

    assert sums == {"192.0.2.1": 1}
    assert last.endswith("Z pericard-auth suppressed count=3\n")


def test_an_address_is_written_in_one_way() -> None:
    assert found({"fe80::1%eth0": 1, "::ffff:192.0.2.1": 2})[0] == {"fe80::1": 1, "192.0.2.1": 2}


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_file_is_there_from_the_start_for_its_group_to_read(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        log = RefusalsLog(tmp_path / "refusals.log", most_bytes=1 << 16, files=3)
    finally:
        os.umask(mask)

    assert stat.S_IMODE((tmp_path / "refusals.log").stat().st_mode) == 0o640
    (tmp_path / "refusals.log").chmod(0o600)  # an operator who wants it otherwise
    log.write(Counter({"192.0.2.1": 1}))
    log.write(Counter({"192.0.2.1": 1}))
    assert len((tmp_path / "refusals.log").read_text().splitlines()) == 2


def test_rotation_keeps_the_newest_and_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "refusals.log"
    log = RefusalsLog(path, most_bytes=1000, files=3)
    for place in range(200):
        log.write(Counter({f"10.0.0.{place}": 1}))

    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["refusals.log", "refusals.log.1", "refusals.log.2"]
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o640 for each in tmp_path.iterdir())
    kept = "".join((tmp_path / name).read_text() for name in reversed(names))
    addresses = [match[1] for match in LINE.finditer(kept)]
    assert addresses == [f"10.0.0.{place}" for place in range(200 - len(addresses), 200)]


def test_one_file_alone_is_begun_anew(tmp_path: Path) -> None:
    log = RefusalsLog(tmp_path / "refusals.log", most_bytes=250, files=1)
    for _ in range(7):
        log.write(Counter({"192.0.2.1": 1}))

    assert [each.name for each in tmp_path.iterdir()] == ["refusals.log"]
    assert (tmp_path / "refusals.log").stat().st_size <= 250


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    log = RefusalsLog(tmp_path / "refusals.log", most_bytes=1 << 16, files=2)
    (tmp_path / "refusals.log").rename(tmp_path / "taken")
    log.write(Counter({"192.0.2.1": 1}))

    assert (tmp_path / "taken").read_text() == ""
    assert LINE.fullmatch((tmp_path / "refusals.log").read_text())


def test_a_link_or_a_missing_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")

    for path in (tmp_path / "link", tmp_path / "nowhere" / "refusals.log", tmp_path):
        with pytest.raises(ConfigError, match="cannot be written"):
            RefusalsLog(path, most_bytes=1 << 16, files=2)
    assert (tmp_path / "target").read_text() == "precious"


def test_a_log_that_cannot_be_written_is_said_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    log = RefusalsLog(tmp_path / "logs" / "refusals.log", most_bytes=1 << 16, files=2)
    (tmp_path / "logs" / "refusals.log").unlink()
    (tmp_path / "logs").rmdir()

    with caplog.at_level(logging.ERROR, "pericard.edge"):
        for _ in range(3):
            log.write(Counter({"192.0.2.1": 1}))
        assert caplog.messages == ["refusals log: cannot be written: no such file or directory"]
        monkeypatch.setattr(refusals_log, "_QUIET_SECONDS", 0.0)
        log.write(Counter({"192.0.2.1": 1}))
    assert len(caplog.messages) == 2
