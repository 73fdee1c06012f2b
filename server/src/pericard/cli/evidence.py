"""``pericard audit prove | check | export | report``: evidence for somebody who does not have this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pericard.audit import Receipt
    from pericard.audit.summary import Summary
    from pericard.engine.replay import Claim
    from pericard.keys import LogVerifier

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_LARGEST = 1 << 20  # bytes of a proof
_KEY = click.option("--key", type=_FILE, required=True, help="The log's public key, log.pub.")


@click.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("index", type=click.IntRange(0), required=False)
@click.option("--consistency", "old", type=_FILE, metavar="OLD", help="Instead: that the log continues this head.")
@click.option("--head", "new", type=_FILE, help="With --consistency: up to this head.  [default: the published one]")
@click.option("-o", "--output", type=_FILE, help="Where to write it.  [default: stdout]")
def prove(directory: Path, index: int | None, old: Path | None, new: Path | None, output: Path | None) -> None:
    """Write the receipt of record INDEX of the log in DIRECTORY: it proves that record, and shows no other.

    With --consistency, prove instead that nothing which a head kept elsewhere covers has changed. Both are verified
    anywhere by pericard audit check.
    """
    from pericard.audit.consistency import consistency
    from pericard.audit.receipt import receipt

    if (index is None) == (old is None) or (new is not None and old is None):
        raise click.UsageError("Give either INDEX, or --consistency.")
    if old is not None:
        made = consistency(directory, _read(old), None if new is None else _read(new)).to_json()
    else:
        made = receipt(directory, index or 0).to_json()
    if output is None:
        click.echo(made.decode())
    else:
        output.write_bytes(made + b"\n")


@click.command()
@click.argument("proof", type=_FILE)
@_KEY
@click.option(
    "--answer", type=_FILE, help="The saved answer of /predict, whose record this is; brings the opening key."
)
@click.option("--input", "strip", type=_FILE, help="With --answer: what was sent: .json, .npy, or the samples' bytes.")
@click.option("--item", type=click.IntRange(0), help="Which one, where the answer holds several; from 0.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def check(proof: Path, key: Path, answer: Path | None, strip: Path | None, item: int | None, as_json: bool) -> None:
    """Verify PROOF offline: a receipt, as the server or pericard audit prove gave it, or a consistency proof.

    It takes the log's public key and nothing else: no log, no server, no network. With --answer and --input, it also
    verifies that the record is that answer's, and commits to what was answered and to what was sent.
    """
    from pericard.keys import LogVerifier

    if answer is None and (strip is not None or item is not None):
        raise click.UsageError("--input and --item go with --answer.")
    data, verifier = _read(proof), LogVerifier.read(key)
    if _is_consistency(data):
        if answer is not None:
            raise click.UsageError("--answer goes with a receipt.")
        shown = _check_consistency(data, verifier)
    else:
        shown = _check_receipt(data, verifier, answer, strip, item)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        click.echo(f"{name:<12} {value}")


def _is_consistency(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False  # whoever reads it as a receipt says so
    return isinstance(value, dict) and "old" in value


def _check_consistency(data: bytes, verifier: LogVerifier) -> dict[str, Any]:
    from pericard.audit.consistency import Consistency, open_consistency

    old, new = open_consistency(Consistency.from_json(data), verifier=verifier)
    click.echo(f"verified: the first {old.size} of {new.size} records are as they were", err=True)
    return {"log": new.origin, "old": old.size, "new": new.size, "root": new.root.hex()}


def _check_receipt(
    data: bytes, verifier: LogVerifier, answer: Path | None, strip: Path | None, item: int | None
) -> dict[str, Any]:
    from pericard.audit import Receipt, open_receipt
    from pericard.audit.checkpoint import algorithms
    from pericard.audit.note import claims

    given = Receipt.from_json(data)
    fields = open_receipt(given.record, given.proof, given.head, verifier=verifier)
    head = claims(given.head)
    opened = [] if answer is None else _open(given, fields, answer, strip, item)
    proved = " and ".join(["its record", *(f"the {label}" for label in opened)])
    click.echo(f"verified: {proved}, under a signed head of {head.size} records", err=True)
    about = {name: value for name, value in fields.items() if name not in {"v", "index"}}
    signed = ", ".join(algorithms(given.head, verifier))
    return {
        "log": head.origin,
        "index": fields["index"],
        "size": head.size,
        "signed": signed,
        "opened": opened,
        **about,
    }


def _open(given: Receipt, fields: dict[str, object], answer: Path, strip: Path | None, item: int | None) -> list[str]:
    """Hold an answer, and what was sent, against a record that was proven; what of it holds."""
    from pericard.audit import open_commitment
    from pericard.cli import forms, kept

    claim = kept.claim(answer, item)
    _same_record(given, claim)
    opened = []
    if claim.outputs is not None:
        open_commitment(fields, "answer", claim.opening_key, forms.of_answer(claim.outputs))
        opened.append("answer")
    if strip is not None:
        place, count = kept.place(answer, item)
        open_commitment(fields, "input", claim.opening_key, forms.of_strip(strip, place, count))
        opened.append("input")
    return opened


def _same_record(given: Receipt, claim: Claim) -> None:
    from pericard.audit.note import claims
    from pericard.audit.proof import leaf_hash
    from pericard.errors import RecordAltered

    named = (claims(given.head).origin, given.index, leaf_hash(given.record).hex())
    if named != (claim.log, claim.index, claim.leaf):
        raise RecordAltered(
            f"record {given.index}: is not the one that the answer names, {claim.index} of {claim.log!a:.80}",
            hint="give the receipt of this answer; --item says which, where it holds several",
        )


@click.command()
@click.argument("directory", type=_DIRECTORY)
@_KEY
@click.option("-o", "--output", type=_DIRECTORY, required=True, help="The folder to make.")
def export(directory: Path, key: Path, output: Path) -> None:
    """Copy the log in DIRECTORY, its published head and its public key to a new folder, and verify the copy."""
    from pericard.audit.export import KEY
    from pericard.audit.export import export as export_log
    from pericard.keys import LogVerifier

    report = export_log(directory, output, verifier=LogVerifier.read(key))
    click.echo(f"verified: {report.size} records in {report.segments} segments")
    click.echo(f"elsewhere: pericard audit verify {output.name} --key {output.name}/{KEY}", err=True)


@click.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--since", default="", help="The first day or moment: 2026-11-23, or 2026-11-23T09:30:00Z.")
@click.option("--until", default="", help="The first day or moment that is not counted.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def report(directory: Path, since: str, until: str, as_json: bool) -> None:
    """Count who asked which model how often, who was refused, what became of models, and who read the log.

    Times are UTC, as records hold them. Counts what the records say; pericard audit verify proves them.
    """
    from pericard.audit.summary import summarise

    span = {name: _moment(text, name) for name, text in (("since", since), ("until", until)) if text}
    found = summarise(directory, **span)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _tables(found)


def _moment(text: str, name: str) -> str:
    """A day or a moment in UTC, in the records' own form, so that texts compare as times do."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        text = ""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z?)?", text, re.ASCII):
        raise click.UsageError(f"--{name} takes a day or a moment in UTC, such as 2026-11-23 or 2026-11-23T09:30:00Z.")
    return text.removesuffix("Z")


def _as_json(found: Summary) -> dict[str, Any]:
    def rows(counter: dict[Any, int], *names: str) -> list[dict[str, Any]]:
        return [{**dict(zip(names, key, strict=True)), "count": count} for key, count in sorted(counter.items())]

    return {
        "records": found.records,
        "first": found.first,
        "last": found.last,
        "asked": rows(found.asked, "principal", "model", "version", "outcome"),
        "refused": rows(found.refused, "code", "who"),
        "read": rows(found.read, "principal", "read"),
        "models": list(found.models),
        "others": dict(sorted(found.others.items())),
    }


def _tables(found: Summary) -> None:
    span = "" if found.first is None else f", index {found.first} to {found.last}"
    click.echo(f"{found.records} records{span}")
    _table("asked", ("principal", "model", "version", "outcome", "count"), _counted(found.asked))
    _table("refused", ("code", "who", "count"), _counted(found.refused))
    _table("read the log", ("principal", "what", "count"), _counted(found.read))
    _table(
        "models",
        ("time", "event", "model", "version", "why"),
        (
            (one["time"], one["event"], one["model"], one["version"],
             " ".join(one[word] for word in ("asked", "principal", "reason", "code") if one.get(word)))
            for one in found.models
        ),
    )  # fmt: skip
    _table("other", ("event", "count"), _counted({(event,): count for event, count in found.others.items()}))


def _counted(counter: dict[Any, int]) -> list[tuple[str, ...]]:
    return [(*key, str(count)) for key, count in sorted(counter.items())]


def _table(title: str, names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    cells = [tuple(_plain(cell)[:80] for cell in row) for row in rows]
    if not cells:
        return
    widths = [max(len(row[place]) for row in (names, *cells)) for place in range(len(names))]
    click.echo(f"\n{title}")
    for row in (names, *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {'  '.join(padded)}".rstrip())


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _read(path: Path) -> bytes:
    from pericard.errors import AuditLogInvalid

    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise AuditLogInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    if len(data) > _LARGEST:
        raise AuditLogInvalid(f"{path}: is larger than a proof can be")
    return data
