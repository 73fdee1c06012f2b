"""The text log of refused credentials, for programs that block addresses.

The edge writes it: it alone knows of a refusal before anything else does, and it is not confined to the folders of the
evidence, as the engine is. The log is no evidence; the audit log has every refusal too. A line has one form, and
nothing in it was chosen by a caller: the address is read as one and written anew. Each address has a few lines a
second, all of them together have a bound, and the files rotate by size.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from pericard.errors import ConfigError

_MODE = 0o640  # its group may read it: the program that blocks need not be root
_LINES_EACH = 5  # in one write, of which there is one a second
_MOST_LINES = 100
_QUIET_SECONDS = 60.0  # between two complaints that it cannot be written
_logger = logging.getLogger(__name__)


class RefusalsLog:
    """Appends lines and rotates files; one thread at a time uses it, other edges may use the same file."""

    def __init__(self, path: Path, *, most_bytes: int, files: int) -> None:
        """Use a file, and beside it its predecessors ``.1``, ``.2`` and so on.

        Args:
            path: of the newest file.
            most_bytes: of one file.
            files: that are kept, with the newest.

        Raises:
            ConfigError: it cannot be written.
        """
        self._path = path
        self._most_bytes = most_bytes
        self._files = files
        self._complained = float("-inf")
        try:
            os.close(self._open())
        except OSError as error:
            raise ConfigError(
                f"refusals log {path}: cannot be written: {(error.strerror or 'i/o error').lower()}",
                hint="make its folder, and give it to the server's account",
            ) from error

    def write(self, counts: Counter[str]) -> None:
        """Write how often which address was refused since the last time; what cannot be written is let go of."""
        try:
            self._append("".join(lines(counts, datetime.now(UTC))).encode("ascii"))
        except OSError as error:
            now = time.monotonic()
            if now - self._complained >= _QUIET_SECONDS:
                self._complained = now
                _logger.error("refusals log: cannot be written: %s", (error.strerror or "i/o error").lower())  # noqa: TRY400  (the message says it all)

    def _append(self, data: bytes) -> None:
        descriptor = self._open()
        try:
            if os.fstat(descriptor).st_size + len(data) > self._most_bytes:
                self._rotate()
                os.close(descriptor)
                descriptor = self._open()
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, _MODE)
        if os.fstat(descriptor).st_size == 0:
            os.fchmod(descriptor, _MODE)  # the umask would take the group's bit away
        return descriptor

    def _rotate(self) -> None:
        """Make room; where two edges do it at once, a predecessor is dropped early, and no new line is lost."""
        for place in range(self._files - 1, 0, -1):
            older = self._path if place == 1 else self._numbered(place - 1)
            if older.exists():
                older.replace(self._numbered(place))
        self._path.unlink(missing_ok=True)

    def _numbered(self, place: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{place}")


def lines(counts: Counter[str], when: datetime) -> list[str]:
    """The lines of one write: for each address a few, the last of which has the rest of its count.

    What has no address, or no room any more, is one line that names none.
    """
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found: list[str] = []
    suppressed = 0
    for address, count in counts.most_common():
        written = min(count, _LINES_EACH, _MOST_LINES - len(found))
        said = _canonical(address) if written > 0 else None
        if said is None:
            suppressed += count
            continue
        each = f"{stamp} pericard-auth refused code=unauthenticated address={said} count="
        found += [f"{each}1\n"] * (written - 1) + [f"{each}{count - written + 1}\n"]
    if suppressed:
        found.append(f"{stamp} pericard-auth suppressed count={suppressed}\n")
    return found


def _canonical(address: str) -> str | None:
    """An address as it is written in one way only, without a zone; None if it is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
