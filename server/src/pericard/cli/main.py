"""The group of all verbs, and the one place where errors become words."""

from __future__ import annotations

import os
import sys

import click

from pericard import __version__
from pericard.cli import audit, env, grants, identity, keys, model, replay, serve, token, trust
from pericard.errors import PericardError

_ABOUT = """Seal models for named hospitals, serve them guarded, and prove what they said.

\b
Vendor:    keygen publisher · seal · inspect · verify · grant · withdraw
Hospital:  keygen identity · keygen log · identity · trust · token · serve · audit · replay
"""


@click.group(help=_ABOUT, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pericard", message="%(prog)s %(version)s")
def cli() -> None:
    """The ``pericard`` command."""


for command in (
    keys.keygen, model.seal, model.inspect, model.verify, grants.grant, grants.withdraw, trust.trust, identity.identity,
    serve.serve, token.token, audit.audit, replay.replay, env.env,
):  # fmt: skip
    cli.add_command(command)


def run() -> None:
    """Run the command line and exit."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        status = cli.main(arguments, prog_name="pericard", standalone_mode=False)
    except PericardError as error:
        return _say(error.message, error.hint, 1)
    except click.UsageError as error:
        return _usage(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _say("interrupted", None, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1
    except Exception as error:
        if os.environ.get("PERICARD_TRACEBACK"):
            raise
        return _unexpected(error)
    return status if isinstance(status, int) else 0


def _usage(error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    where = error.ctx.command_path if error.ctx else "pericard"
    return _say(_sentence(error.format_message()), f"{where} --help shows how it is used", 2)


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.filename or 'output'}: {error.strerror.lower()}", None, 1)
    name = type(error).__name__
    return _say(f"something went wrong inside ({name})", "PERICARD_TRACEBACK=1 shows where; please report it", 1)


def _say(message: str, hint: str | None, status: int) -> int:
    click.echo(f"pericard: error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return status


def _sentence(text: str) -> str:
    """Click's messages in our voice: lower case, no full stop."""
    return (text[:1].lower() + text[1:]).rstrip(".")
