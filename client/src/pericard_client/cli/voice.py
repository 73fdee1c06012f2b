"""How the command line speaks: results on standard output, ``error:`` and ``hint:`` on standard error."""

from __future__ import annotations

from collections.abc import Iterable

import click

from pericard_client.errors import (
    ClientError,
    ConnectionLost,
    EvidenceError,
    FileError,
    MalformedEvidence,
    ModelIdentityMismatch,
    NotSendable,
    ServerError,
    ServerUnreachable,
    TimedOut,
    Unavailable,
    VerifierMissing,
    printable,
)

NAME = "pericard-client"
EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 4, 130
EXITS = """\b
Exit codes; of several failures the highest:
  0  done
  1  refused by the server, or failed, be it for one window
  2  unreadable file, or wrong usage
  4  server unavailable, after the retries
  5  another model answered than the one expected
  6  evidence that does not hold
"""
_KINDS: tuple[tuple[int, tuple[type[ClientError], ...]], ...] = (
    (EXIT_USAGE, (MalformedEvidence, VerifierMissing)),
    (6, (EvidenceError,)),
    (5, (ModelIdentityMismatch,)),
    (EXIT_UNAVAILABLE, (Unavailable, ServerUnreachable, TimedOut, ConnectionLost)),
    (EXIT_USAGE, (FileError, NotSendable)),
)


def say(message: str, hint: str | None = None) -> None:
    """Tell of a failure."""
    click.echo(f"{NAME}: error: {printable(message)}", err=True)
    if hint:
        click.echo(f"{NAME}: hint: {printable(hint)}", err=True)


def report(error: ClientError, about: str = "") -> int:
    """Tell of an error, about which file it is, and return its exit code."""
    message = error.message
    if about and not message.startswith(printable(about)):
        message = f"{printable(about)}: {message.removeprefix('recording: ')}"
    if isinstance(error, ServerError):
        message += f" ({error.code}{f', request {error.request_id}' if error.request_id else ''})"
    say(message, error.hint)
    return next((code for code, kinds in _KINDS if isinstance(error, kinds)), EXIT_FAILED)


def lines(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    for name, value in pairs:
        click.echo(f"  {name:<10}{value}")
