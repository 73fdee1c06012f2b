"""The site's decision about one verified model.

A grant's life: before ``not_before`` it is refused; up to ``not_after`` it is ``valid``; for the signed grace days
after that it is ``grace`` (served, and said in every answer); then it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pericard.errors import (
    LicenceExpired,
    LicenceNotYetValid,
    RuntimeNotAllowed,
    TrustError,
    VersionWithdrawn,
)
from pericard.keys import Publisher
from pericard.sealed import Grant, VerifiedModel
from pericard.trust.state import TrustState

_DAY = 86400
_LAST_DATE = 253402300799  # 9999-12-31T23:59:59Z; a grant may last longer, a date cannot be written


@dataclass(frozen=True, slots=True)
class Licence:
    """The grant that a model is served under."""

    grant: Grant

    def state(self, now: int) -> str:
        """``valid`` or ``grace`` at a licence time (Unix seconds).

        Raises:
            LicenceNotYetValid: the grant begins later.
            LicenceExpired: the grant and its grace days are over.
        """
        if now < self.grant.not_before:
            raise LicenceNotYetValid(
                f"licence: begins on {_date(self.grant.not_before)}", hint="check the host's clock, then the vendor"
            )
        if now <= self.grant.not_after:
            return "valid"
        if now <= self.grant.not_after + self.grant.grace_days * _DAY:
            return "grace"
        raise LicenceExpired(
            f"licence: ended on {_date(self.grant.not_after)} and {self.grant.grace_days} grace days later",
            hint="ask the vendor for a new grant",
        )

    def days_left(self, now: int) -> float:
        """Days until ``not_after``; negative during grace."""
        return (self.grant.not_after - now) / _DAY


class Policy:
    """What this site accepts.

    Attributes:
        publishers: pinned publishers.
        state: what was remembered.
    """

    def __init__(self, publishers: tuple[Publisher, ...], state: TrustState, *, runtime: str) -> None:
        """Take the pinned publishers, the remembered state and the digest of this runtime."""
        self.publishers = publishers
        self.state = state
        self._runtime = runtime

    def licence_time(self, now: int) -> int:
        """Licence time: the clock, but never behind what was recorded."""
        return max(now, self.state.latest_time)

    def accept(self, model: VerifiedModel, recipient: str, now: int) -> Licence:
        """Decide about a verified model for an identity at a time (Unix seconds).

        Raises:
            VersionWithdrawn: its sequence is below the remembered floor.
            RuntimeNotAllowed: it demands another runtime.
            NoGrant: it holds no grant for the recipient.
            LicenceNotYetValid, LicenceExpired: no grant covers the time.
        """
        about = model.manifest.description
        floor = self.state.floor(model.publisher.id, about.name)
        if about.sequence < floor:
            raise VersionWithdrawn(
                f"{model.subject}: version {about.version} (sequence {about.sequence}) was withdrawn by its publisher",
                hint=f"install a version with sequence {floor} or later",
            )
        if about.required_runtime not in (None, self._runtime):
            raise RuntimeNotAllowed(
                f"{model.subject}: is licensed for runtime {str(about.required_runtime)[:16]}, this is "
                f"{self._runtime[:16]}",
                hint="install the runtime that the vendor locked",
            )
        return self._covering(model, recipient, self.licence_time(now))

    def _covering(self, model: VerifiedModel, recipient: str, now: int) -> Licence:
        """The grant that lasts longest of those that cover the time, or the reason why none does."""
        refusal: TrustError | None = None
        by_end = sorted(model.grants_for(recipient), key=lambda grant: grant.not_after, reverse=True)
        for licence in map(Licence, by_end):
            try:
                licence.state(now)
            except TrustError as error:
                refusal = refusal or error
            else:
                return licence
        if refusal is None:
            raise AssertionError("grants_for returned no grant")
        raise refusal

    def served(self, model: VerifiedModel, now: int) -> None:
        """Remember what a model that passed its known answers teaches: its floor and the time."""
        about = model.manifest.description
        self.state.raise_floor(model.publisher.id, about.name, about.floor)
        self.state.raise_time(now)


def _date(moment: int) -> str:
    return datetime.fromtimestamp(min(moment, _LAST_DATE), UTC).date().isoformat()
