"""What a key source is told: plain values, never settings, and no secret."""

from __future__ import annotations

import msgspec


class VaultValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a transit engine is, and who we are there.

    Attributes:
        address: ``https://host:port``; ``http`` only on a loopback address.
        ca: PEM file of the authority that signs the server's certificate, or None for the system's.
        token: file that holds the token, mode 0600, or None.
        token_fd: descriptor that the token is read from, or None.
    """

    address: str
    ca: str | None = None
    token: str | None = None
    token_fd: int | None = None


class UnlockValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the identity is unlocked.

    Attributes:
        kind: the lock, or ``file``, or ``systemd``.
        path: the identity file; a service manager's credential has none.
        previous: a second identity that is live during a rotation; plain, or with the same lock.
        passphrase_fd: descriptor that the passphrase is read from; None asks on the terminal.
        credential: name of the service manager's credential.
        tcti: how the TPM is reached, or None for ``TPM2TOOLS_TCTI`` and then the tools' own default.
        vault: for the kind ``vault``.
        options: for a lock that another package brings.
    """

    kind: str = "file"
    path: str = ""
    previous: str | None = None
    passphrase_fd: int | None = None
    credential: str = "identity"
    tcti: str | None = None
    vault: VaultValues | None = None
    options: dict[str, str] = {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that the source reads."""
        found = (self.passphrase_fd, self.vault.token_fd if self.vault else None)
        return tuple(sorted({number for number in found if number is not None}))
