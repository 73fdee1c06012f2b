"""A credential of the service manager: a plain identity in ``$CREDENTIALS_DIRECTORY``.

systemd decrypts it (``LoadCredentialEncrypted=``, with the host's key, the TPM's, or both) into memory that only this
service sees. The folder is the guard: for a service with a user of its own, systemd gives that user the file by an
access list, which shows as group permission, so that one bit is no leak here.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pericard.errors import ConfigError, KeySourceUnavailable
from pericard.keys import Identity

_FOLDER = "CREDENTIALS_DIRECTORY"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


@dataclass(frozen=True, slots=True)
class Credential:
    """Reads the seed from a service manager's credential."""

    name: str

    def seed(self) -> bytearray:
        """The seed.

        Raises:
            ConfigError: the name is not one of a credential.
            KeySourceUnavailable: no service manager handed us this credential.
            KeyFileError: what it handed us is not a plain identity, or others could read it.
        """
        if not _NAME.fullmatch(self.name) or self.name in {".", ".."}:
            raise ConfigError(f"identity.credential: {self.name[:64]!r} is not the name of a credential")
        folder = os.environ.get(_FOLDER, "")
        if not folder.startswith("/"):
            raise KeySourceUnavailable(
                f"credential {self.name}: no service manager gave us any, {_FOLDER} is not set",
                hint=f"LoadCredentialEncrypted={self.name}:… in the service's unit; see the guide on identities",
            )
        path = Path(folder) / self.name
        if not path.is_file():
            raise KeySourceUnavailable(
                f"credential {self.name}: is not among those that the service manager gave us",
                hint="the unit's LoadCredential… line and identity.credential must name the same",
            )
        return Identity.read_seed(path, shared=stat.S_IRGRP)
