"""The fixtures of ``tests/fixtures/integration_site.py``."""

from integration_site import daemon, made_site, site, strip

__all__ = ["daemon", "made_site", "site", "strip"]
