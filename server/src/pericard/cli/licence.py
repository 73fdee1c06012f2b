"""What the vendor's verbs that license have in common: for whom, and from when to when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pericard.keys import Recipient
    from pericard.sealed import Term

DAY = 86400
_DATE = click.DateTime(["%Y-%m-%d"])
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, and how much longer; Unix times.

    Attributes:
        begin: first second.
        end: last second.
        grace_days: days of service after the end.
    """

    begin: int
    end: int
    grace_days: int

    @classmethod
    def given(
        cls, not_before: datetime | None, not_after: datetime | None, days: int | None, grace_days: int
    ) -> Period:
        """What the options say.

        Raises:
            UsageError: neither a last day nor a length, or both.
            BadGrant: it would end before it begins.
        """
        if (not_after is None) == (days is None):
            both = ", not both" if days is not None else ""
            raise click.UsageError(f"Give either --not-after or --days{both}.")
        begin = midnight(not_before) if not_before else int(time.time()) // DAY * DAY
        end = last_second(not_after) if not_after else begin + (days or 0) * DAY
        if end < begin:
            from pericard.errors import BadGrant

            raise BadGrant(
                f"licence: would end ({date(end)}) before it begins ({date(begin)})",
                hint="--not-after is its last day, --not-before its first, today if it is left out; both are of UTC",
            )
        return cls(begin, end, grace_days)

    def term(self, recipient: Recipient) -> Term:
        """A grant to be made for this period."""
        from pericard.sealed import Term

        return Term(recipient, self.begin, self.end, self.grace_days)


def options(command: _Command) -> _Command:
    """The options of :meth:`Period.given`."""
    for option in (
        click.option("--grace-days", default=14, show_default=True, type=click.IntRange(0, 366),
                     help="Days on which the model still serves after the last one, and says so."),
        click.option("--days", type=click.IntRange(1, 36600), help="Length of the licence, instead of --not-after."),
        click.option("--not-after", type=_DATE, help="Last day of the licence (UTC)."),
        click.option("--not-before", type=_DATE, help="First day of the licence (UTC).  [default: today]"),
    ):  # fmt: skip
        command = option(command)
    return command


def recipient(path: Path) -> Recipient:
    """Read a recipient's public key.

    Raises:
        KeyFileInvalid: it is missing, damaged, or a key of another kind.
    """
    from pericard.sealed import recipients

    return recipients.read(path)


def midnight(day: datetime) -> int:
    """First second of a day (UTC)."""
    return int(day.replace(tzinfo=UTC).timestamp())


def last_second(day: datetime) -> int:
    """Last second of a day (UTC)."""
    return midnight(day) + DAY - 1


def date(moment: int) -> str:
    """The day of a Unix time; an archive's grant ends beyond what a calendar prints."""
    try:
        return datetime.fromtimestamp(moment, UTC).date().isoformat()
    except (ValueError, OverflowError):
        return "no end"
