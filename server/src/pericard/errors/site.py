"""What is wrong with the site: its settings, its processes, its keys."""

from __future__ import annotations

from pericard.errors.base import PericardError


class ConfigError(PericardError):
    """A setting is missing, unknown, or unsafe."""

    code = "config-invalid"


class HardeningError(PericardError):
    """A protection of the process that was asked for cannot be had."""

    code = "hardening-unavailable"


class EnvironmentDrift(PericardError):
    """The installed runtime is not the one that was locked."""

    code = "environment-drift"


class KeyFileError(PericardError):
    """Base: something about a key file."""


class KeyFileInvalid(KeyFileError):
    """A key file is not what it should be."""

    code = "key-file-invalid"


class KeyFileExposed(KeyFileError):
    """A private key file can be read by others."""

    code = "key-file-exposed"


class KeySourceError(PericardError):
    """Base: the identity could not be unlocked."""


class KeySourceUnavailable(KeySourceError):
    """What would unlock the identity cannot be reached, or is not there."""

    code = "key-source-unavailable"


class UnlockRefused(KeySourceError):
    """The key source answered, and what it holds does not unlock this identity."""

    code = "unlock-refused"


class PipeError(PericardError):
    """A frame between edge and engine is malformed, or the other end is gone."""

    code = "pipe-broken"
