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
    """The installed runtime is not the one that was locked, or code gets into it from elsewhere."""

    code = "environment-drift"


class LockInvalid(PericardError):
    """A lock of a runtime, or its signature file, is not what it should be."""

    code = "environment-lock-invalid"


class ArchiveRefused(PericardError):
    """A package's archive is not the one that was locked, cannot be had, or is malformed."""

    code = "environment-archive-refused"


class NotSolved(PericardError):
    """There is no set of packages that satisfies what was asked for."""

    code = "environment-not-solved"


class NotInstalled(PericardError):
    """A runtime could not be installed; nothing is left of the attempt."""

    code = "environment-not-installed"


class AdvisoriesFound(PericardError):
    """A package of the runtime has a known vulnerability."""

    code = "environment-vulnerable"


class ManifestUnusable(PericardError):
    """What the installed runtime would be held against is not there, or cannot be trusted."""

    code = "environment-manifest-unusable"


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
