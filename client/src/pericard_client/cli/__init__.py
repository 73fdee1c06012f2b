"""The command line.

Rules of this room: this file declares the commands and imports nothing heavy, so that ``--help`` answers at once; what
they do is in ``verbs``. A token is never an argument, because every user of a machine can read those.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pericard_client.cli.voice import EXIT_INTERRUPTED, EXIT_USAGE, EXITS, NAME, report, say
from pericard_client.errors import ClientError

F = TypeVar("F", bound=Callable[..., Any])

_SERVER_OPTIONS = (
    click.option("--server", required=True, envvar="PERICARD_SERVER", show_envvar=True, metavar="URL", help="Address."),
    click.option(
        "--token-file",
        envvar="PERICARD_TOKEN_FILE",
        show_envvar=True,
        metavar="FILE",
        help="File that holds the token; without one, PERICARD_TOKEN is the token.",
    ),
    click.option("--ca", metavar="FILE", help="PEM certificates of the authority that the server's must come from."),
    click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for each attempt."),
    click.option("--retries", type=int, default=2, show_default=True, help="Only of what was surely not processed."),
    click.option("--expect-manifest", metavar="SHA256", help="Accept answers of this model manifest alone."),
    click.option("--allow-plaintext", is_flag=True, help="Send the token unencrypted to another machine."),
)
_PROOF_OPTIONS = (
    click.option(
        "--server", envvar="PERICARD_SERVER", show_envvar=True, metavar="URL", help="Where to fetch receipts."
    ),
    *_SERVER_OPTIONS[1:],
)
_OUT = click.option("--out", type=click.Choice(["table", "json"]), default="table", show_default=True)


def _options_of(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_server_options = _options_of(_SERVER_OPTIONS)


def run() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = int(_group.main(arguments, prog_name=NAME, standalone_mode=False) or 0)
        sys.stdout.flush()
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        message = error.format_message().rstrip(".")
        say(message[:1].lower() + message[1:], f"{NAME} --help")
        return EXIT_USAGE
    except ClientError as error:
        return report(error)
    except BrokenPipeError:  # the reader, such as head, has enough; keep the interpreter's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


@click.group(name=NAME, no_args_is_help=False, epilog=EXITS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pericard-client")
def _group() -> None:
    """Send an ECG to a Pericard server and read the answer.

    Only samples leave this machine: no name, no identity and no file does.
    """


@_group.command("ready", epilog=EXITS)
@_server_options
def _ready(**server: object) -> int:
    """Ask whether the server can answer; if not, exit with 4."""
    from pericard_client.cli import verbs

    return verbs.ready(server)


@_group.command("model", epilog=EXITS, short_help="Describe a model, or list them.")
@click.argument("name", required=False)
@_OUT
@_server_options
def _model(name: str | None, out: str, **server: object) -> None:
    """Describe the model NAME; without it, list the models that the token may use."""
    from pericard_client.cli import verbs

    verbs.model(name, out, server)


@_group.command("predict", epilog=EXITS)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--model", metavar="NAME", help="Needed unless the token may use exactly one.")
@click.option("--lead", multiple=True, metavar="NAME", help="Lead to analyse; once for each channel of the model.")
@click.option("--sampling-rate", type=float, metavar="HZ", help="Of an NPY file.")
@click.option("--unit", type=click.Choice(["mV", "uV", "V"]), help="Of an NPY file.")
@click.option("--leads", metavar="NAME,...", help="Of an NPY file's rows.")
@click.option(
    "--no-resample",
    is_flag=True,
    help="Send the recording as it is; the server refuses what the model was not made for.",
)
@_OUT
@click.option("--plot", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw it: .png or .svg.")
@_server_options
def _predict(files: tuple[Path, ...], picture: Path | None, out: str, **options: object) -> int:
    """Score DICOM waveforms or NPY arrays.

    A recording is resampled to the model's rate and cut into windows of its length, each with a score of its own; the
    last window ends with the recording.
    """
    if picture is not None and len(files) > 1:
        raise click.UsageError("--plot draws one FILE")
    from pericard_client.cli import verbs

    return verbs.PredictRun(options, picture, out).run(files)


@_group.command("receipt", epilog=EXITS, short_help="Verify that a saved answer is in the server's audit log.")
@click.argument("answer", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The log's key, log.pub.")
@click.option("--receipt", "proof", type=click.Path(path_type=Path), metavar="FILE", help="Instead of fetching it.")
@click.option("--input", "strip", type=click.Path(path_type=Path), metavar="FILE", help="The ECG, or what was sent.")
@click.option("--item", type=click.IntRange(0), metavar="N", help="Only this one of the answer's receipts; from 0.")
@click.option("--sampling-rate", type=float, metavar="HZ", help="Of an NPY recording.")
@click.option("--unit", type=click.Choice(["mV", "uV", "V"]), help="Of an NPY recording.")
@click.option("--leads", metavar="NAME,...", help="Of an NPY recording's rows.")
@_OUT
@_options_of(_PROOF_OPTIONS)
def _receipt(
    answer: Path, key: Path, proof: Path | None, strip: Path | None, item: int | None, out: str, **options: object
) -> int:
    """Verify that the server's audit log holds the saved ANSWER, and that it was about this ECG.

    ANSWER is what the server answered to /predict, or what predict --out json printed. With --receipt FILE nothing is
    asked of anybody: the log's public key is all that is believed. Without it the receipts are fetched, which takes a
    token with the permission audit.
    """
    if proof is None and options["server"] is None:
        raise click.UsageError("give --receipt, or --server to fetch it from")
    from pericard_client.cli.receipt import ReceiptRun

    return ReceiptRun(key, strip, out, options).run(answer, proof, item)


@_group.command("bench", epilog=EXITS, short_help="Put load on a server and measure it.")
@click.option("--model", metavar="NAME", help="Needed unless the token may use exactly one.")
@click.option("--encoding", type=click.Choice(["json", "binary"]), default="json", show_default=True)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 512),
    metavar="N",
    help="Requests at once (8); with --rate at most so many (256).",
)
@click.option("--rate", type=click.FloatRange(0.01, 100_000), metavar="R", help="Requests a second: the open loop.")
@click.option("--arrivals", type=click.Choice(["poisson", "uniform"]), default="poisson", show_default=True)
@click.option(
    "--duration", type=click.FloatRange(0.1, 86_400), metavar="S", help="Seconds; 10 unless --requests is given."
)
@click.option("--requests", type=click.IntRange(1, 10_000_000), metavar="N", help="End after so many.")
@click.option(
    "--warmup",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds, not counted.",
)
@click.option(
    "--items", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="K", help="Strips a request."
)
@click.option(
    "--input",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Windows of this recording; without it a synthetic ECG.",
)
@click.option("--lead", multiple=True, metavar="NAME", help="Lead of FILE to send; once for each channel of the model.")
@click.option("--sampling-rate", type=click.FloatRange(min=0, min_open=True), metavar="HZ", help="Of an NPY file.")
@click.option("--unit", type=click.Choice(["mV", "uV", "V"]), help="Of an NPY file.")
@click.option("--leads", metavar="NAME,...", help="Of an NPY file's rows.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the signal and the arrivals.")
@_OUT
@_server_options
def _bench(**options: object) -> int:
    """Measure throughput and latency of a model on a server.

    Closed loop: --concurrency N requests at any time. Open loop: --rate R requests a second whatever the server does,
    and a latency counts from the moment the request was due. No request is repeated. Each answer costs the server a
    computation and an audit record: measure on a server that is not in use.
    """
    from pericard_client.cli.bench import BenchRun

    return BenchRun(options).run()
