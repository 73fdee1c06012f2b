"""Pericard: sealed models, a guarded engine, evidence, and the runtime gate.

The public API is what this module names. Everything else may change between minor versions.
"""

__version__ = "0.1.0"
