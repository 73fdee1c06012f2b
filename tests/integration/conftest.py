"""The fixtures of ``tests/fixtures/integration_site.py``."""

from integration_site import daemon, made_site, shared_daemon, site, strip

__all__ = ["daemon", "made_site", "shared_daemon", "site", "strip"]
