"""The fixtures of ``tests/fixtures/integration_site.py``, for attacks on a real daemon."""

from integration_site import daemon, made_site, shared_daemon, site, strip

__all__ = ["daemon", "made_site", "shared_daemon", "site", "strip"]
