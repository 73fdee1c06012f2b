"""The site's decision about one verified model.

A grant's life: before ``not_before`` it is refused; up to ``not_after`` it is ``valid``; for the signed grace days
after that it is ``grace`` (served, and said in every answer); then it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from pericard.environment import Host
from pericard.errors import (
    LicenceExpired,
    LicenceNotYetValid,
    RuntimeNotAllowed,
    TrustError,
    UntrustedPublisher,
    VersionWithdrawn,
)
from pericard.keys import Publisher
from pericard.sealed import Description, Grant, Notice, VerifiedModel, version
from pericard.trust.state import Remembered, TrustState
from pericard.trust.store import Pin, Pins

_DAY = 86400
_LAST_DATE = 253402300799  # 9999-12-31T23:59:59Z; a grant may last longer, a date cannot be written


@dataclass(frozen=True, slots=True)
class Licence:
    """The grant that a model is served under.

    Attributes:
        grant: the grant.
        subject: names the model in errors; may be empty.
    """

    grant: Grant
    subject: str = field(default="", compare=False)

    def state(self, now: int) -> str:
        """``valid`` or ``grace`` at a licence time (Unix seconds).

        Raises:
            LicenceNotYetValid: the grant begins later.
            LicenceExpired: the grant and its grace days are over.
        """
        if now < self.grant.not_before:
            raise LicenceNotYetValid(
                f"{self._named}: begins on {_date(self.grant.not_before)}",
                hint="check the host's clock, then the vendor",
            )
        if now <= self.grant.not_after:
            return "valid"
        if now <= self.grant.not_after + self.grant.grace_days * _DAY:
            return "grace"
        raise LicenceExpired(
            f"{self._named}: ended on {self.last_day} and {self.grant.grace_days} grace days later",
            hint="ask the vendor for a new grant",
        )

    @property
    def last_day(self) -> str:
        """The day of ``not_after``, as ISO 8601 writes it (UTC)."""
        return _date(self.grant.not_after)

    @property
    def _named(self) -> str:
        return f"{self.subject}: licence" if self.subject else "licence"

    def days_left(self, now: int) -> float:
        """Days until ``not_after``; negative during grace."""
        return (self.grant.not_after - now) / _DAY


class Policy:
    """What this site accepts.

    Attributes:
        state: what was remembered.
    """

    def __init__(self, pins: Pins, state: TrustState, *, runtime: str, host: Host | None = None) -> None:
        """Take the pinned publishers, the remembered state, the digest of this runtime, and what this host has.

        Without a host, nothing that a publisher may ask of one is there.
        """
        self._pins = pins
        self.state = state
        self._runtime = runtime
        self._host = host or Host()

    @property
    def publishers(self) -> tuple[Publisher, ...]:
        """Every pinned key; those that ended too, so that :meth:`accept` can say so."""
        return self._pins.publishers

    def licence_time(self, now: int) -> int:
        """Licence time: the clock, but never behind what was recorded."""
        return max(now, self.state.latest_time)

    def floor(self, publisher: str, model: str) -> int:
        """The lowest sequence of a model that is accepted: the highest over all keys of the publisher's name."""
        pin = self._pins.get(publisher)
        keys = [publisher] if pin is None else [other.publisher.id for other in self._pins.named(pin.name)]
        return max(self.state.current.floor(key, model) for key in keys)

    def accept(self, model: VerifiedModel, recipient: str, now: int) -> Licence:
        """Decide about a verified model for an identity at a time (Unix seconds).

        Raises:
            UntrustedPublisher: the key that signed it ended, or is not pinned.
            VersionWithdrawn: its sequence is below the remembered floor.
            RuntimeNotAllowed: it demands another runtime, or what this host does not have.
            NoGrant: it holds no grant for the recipient.
            LicenceNotYetValid, LicenceExpired: no grant covers the time.
        """
        about = model.manifest.description
        self._trusted(model.publisher.id, now, subject=model.subject)
        floor = self.floor(model.publisher.id, about.name)
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
        self._suitable(about, subject=model.subject)
        return self._covering(model, recipient, self.licence_time(now))

    def _suitable(self, about: Description, *, subject: str) -> None:
        """Hold this host against the bounds that the publisher signed; those of CUDA only where CUDA computes."""
        bounds, cuda = about.required_host, self._host.cuda
        if bounds is None:
            return
        lacking = [flag for flag in bounds.cpu_flags if flag not in self._host.flags]
        if lacking:
            raise RuntimeNotAllowed(
                f"{subject}: needs a CPU with {', '.join(lacking)}, which this one lacks",
                hint="serve it on another host; /proc/cpuinfo shows what a CPU has",
            )
        if cuda is None:
            return
        for what, least, here in (
            ("the NVIDIA driver", bounds.driver, cuda.driver),
            ("CUDA", bounds.cuda, cuda.runtime),
            ("cuDNN", bounds.cudnn, cuda.cudnn),
        ):
            if least is not None and (not here or version(here) < version(least)):
                raise RuntimeNotAllowed(
                    f"{subject}: needs {what} {least} or later, this host has {here or 'none that can be told'}",
                    hint=f"install a later version of {what}, or serve the model on the CPU",
                )

    def _covering(self, model: VerifiedModel, recipient: str, now: int) -> Licence:
        """The grant that lasts longest of those that cover the time, or the reason why none does."""
        refusal: TrustError | None = None
        by_end = sorted(model.grants_for(recipient), key=lambda grant: grant.not_after, reverse=True)
        for licence in (Licence(grant, f"model {model.manifest.description.name}") for grant in by_end):
            try:
                licence.state(now)
            except TrustError as error:
                refusal = refusal or error
            else:
                return licence
        if refusal is None:
            raise AssertionError("grants_for returned no grant")
        raise refusal

    def taught(self, model: VerifiedModel) -> Remembered:
        """What is to be remembered of a model that passed its known answers: its floor."""
        about = model.manifest.description
        return self.state.current.with_floor(model.publisher.id, about.name, about.floor)

    def withdrawn(self, notice: Notice, now: int, *, subject: str) -> Remembered:
        """What is to be remembered of a verified notice, at once.

        Raises:
            UntrustedPublisher: its key ended, and it says what was not known before.
        """
        proposed = self.state.current.with_floor(notice.publisher, notice.model, notice.floor)
        if proposed != self.state.current:  # an old notice may lie on after its key ended; a new one is nobody's
            self._trusted(notice.publisher, now, subject=subject)
        return proposed

    def _trusted(self, publisher: str, now: int, *, subject: str) -> Pin:
        pin = self._pins.get(publisher)
        if pin is None:
            raise UntrustedPublisher(f"{subject}: was not signed by a publisher that this site pinned")
        if not pin.trusted(self.licence_time(now)):
            raise UntrustedPublisher(
                f"{subject}: was signed by a key of {pin.name} that this site trusted until {_date(pin.until or 0)}",
                hint="ask the vendor for a file under the key that is pinned now; pericard trust list shows them",
            )
        return pin


def _date(moment: int) -> str:
    return datetime.fromtimestamp(min(moment, _LAST_DATE), UTC).date().isoformat()
