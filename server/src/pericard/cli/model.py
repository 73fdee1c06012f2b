"""``pericard seal | inspect | verify``: the vendor's verbs for a sealed model."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pericard.cli import licence
from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.keys import Publisher
    from pericard.sealed import Grant, Manifest, SealedModel, VerifiedModel

_LAST_TIME = 253402300799  # 9999-12-31T23:59:59Z
_EXISTING = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("artifact", type=_EXISTING)
@click.option("--manifest", "description", type=_EXISTING, required=True, help="model.yaml: what the model is.")
@click.option(
    "--module", "factory", metavar="PKG.MOD:FACTORY", help="What makes the module that ARTIFACT has weights of."
)
@click.option("--strip-prefix", metavar="TEXT", help="Taken off every name of the weights, such as 'module.'.")
@click.option("--questions", "own", type=_EXISTING, help="Known questions of your own, .npz; never a patient's.")
@click.option("--sign-with", type=_EXISTING, required=True, help="The publisher's private key.")
@click.option(
    "--archive", type=_EXISTING, required=True, help="The publisher's archive identity.pub, for later grants."
)
@click.option("-r", "--recipient", "recipients", type=_EXISTING, multiple=True, help="A hospital's identity.pub.")
@licence.options
@click.option("-o", "--output", type=FILE, required=True, help="The sealed model.")
def seal(
    artifact: Path,
    description: Path,
    factory: str | None,
    strip_prefix: str | None,
    own: Path | None,
    sign_with: Path,
    archive: Path,
    recipients: tuple[Path, ...],
    not_before: datetime | None,
    not_after: datetime | None,
    days: int | None,
    grace_days: int,
    output: Path,
) -> None:
    """Seal ARTIFACT for the recipients: signed, encrypted, licensed.

    ARTIFACT is a .pt2 of torch.export, a .onnx, or with --module the weights of an nn.Module. No code of a .pt2 or a
    .onnx is run; --module runs your own.
    """
    if strip_prefix is not None and factory is None:
        raise click.UsageError("--strip-prefix goes with --module.")
    period = licence.Period.given(not_before, not_after, days, grace_days)
    from pericard import hardening

    isolated = hardening.drop_network()  # before anything of the vendor's is read, and while there is one thread
    from pericard import library

    made = library.seal(
        artifact, output, about=description, sign_with=sign_with, archive=licence.recipient(archive),
        terms=[period.term(licence.recipient(path)) for path in recipients], factory=factory,
        strip_prefix=strip_prefix, questions=own, remark=lambda text: click.echo(f"warning: {text}", err=True),
    )  # fmt: skip
    about = made.manifest.description
    click.echo(made.manifest_hash)
    click.echo(
        f"sealed {about.name} {about.version} for {len(recipients)} recipient(s) until {licence.date(period.end)}, "
        f"{'without a network' if isolated else 'with the network up: this host does not let it be dropped'}: {output}",
        err=True,
    )


@click.command()
@click.argument("file", type=_EXISTING)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def inspect(file: Path, as_json: bool) -> None:
    """Show what FILE says of itself. Needs no key and verifies nothing."""
    from pericard.sealed import SealedModel, manifest

    with SealedModel(file) as source:
        found = manifest.parse(source.manifest_bytes, subject=file.name)
        summary = _summary(found) | {"grants": len(source.packed_grants)}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        for key, value in summary.items():
            click.echo(f"{key:<14} {value}")
    click.echo("not verified: pericard verify does that", err=True)


@click.command()
@click.argument("file", type=_EXISTING)
@click.option("--publisher", type=_EXISTING, required=True, help="The publisher's public key.")
@click.option("--grant", "files", type=_EXISTING, multiple=True, help="A grant file of this model; repeat for more.")
@click.option("-i", "--identity", type=_EXISTING, help="Also decrypt in memory and ask the known questions.")
@click.option("--sealed-in", metavar="DIGEST", help="Refuse it if another runtime sealed it (pericard env show).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(
    file: Path,
    publisher: Path,
    files: tuple[Path, ...],
    identity: Path | None,
    sealed_in: str | None,
    as_json: bool,
) -> None:
    """Verify FILE: signatures and grants; with an identity, also that it opens, loads and answers right here."""
    from pericard.keys import Publisher
    from pericard.sealed import SealedModel, read_grants

    with SealedModel(file) as source:
        model = _signed_by(source, Publisher.read(publisher), publisher.name)
        for path in files:
            for body, signatures in read_grants(path):
                model.add_grant(body, signatures, subject=path.name)
        result: dict[str, Any] = _summary(model.manifest) | {
            "manifest": model.manifest_hash,
            "grants": [_granted(grant) for grant in model.grants],
        }
        if sealed_in is not None:
            _require_runtime(model, sealed_in)
        if identity is not None:
            result["known_answers"] = _try(model, identity)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            for line in value if isinstance(value, list) else [value]:
                click.echo(f"{key:<14} {line}")
    extent = ": header and grants; the payload was not read (-i IDENTITY does that)"
    click.echo(f"verified: {file}{extent if identity is None else ', payload included'}", err=True)


def _signed_by(source: SealedModel, publisher: Publisher, name: str) -> VerifiedModel:
    """Verify a file as one publisher's; the refusal says whose it claims to be."""
    from pericard.errors import MalformedModel, UntrustedPublisher
    from pericard.sealed import manifest

    try:
        return source.verify([publisher])
    except UntrustedPublisher as error:
        try:
            claimed = manifest.parse(source.manifest_bytes, subject=source.subject).publisher_id[:16]
        except MalformedModel:
            claimed = "nobody"
        raise UntrustedPublisher(
            f"{source.subject}: was not signed by {name} ({publisher.id[:16]}) but, as it says itself, by {claimed}",
            hint="compare the publisher's id with the vendor by another channel, and ask for the .pub that belongs to "
            "this file",
        ) from error


def _granted(grant: Grant) -> str:
    """A grant in words, with what it is worth today."""
    from pericard.errors import LicenceExpired, LicenceNotYetValid
    from pericard.trust import Licence

    if licence.date(grant.not_after) == "no end":
        return f"{grant.recipient[:16]} archive, no end"
    try:
        state = Licence(grant).state(int(time.time()))
    except LicenceNotYetValid:
        state = "not yet"
    except LicenceExpired:
        state = "ended"
    return f"{grant.recipient[:16]} {licence.date(grant.not_before)} to {licence.date(grant.not_after)}, {state}"


def _require_runtime(model: VerifiedModel, digest: str) -> None:
    from pericard.errors import RuntimeNotAllowed

    found = model.manifest.description.sealed_in
    if found != digest.lower():
        raise RuntimeNotAllowed(
            f"{model.subject}: was sealed in runtime {found}, not in {digest[:64]}",
            hint="ask the vendor which runtime it seals in, by another channel",
        )


def _try(model: Any, identity: Path) -> str:  # noqa: ANN401  (a VerifiedModel, not imported here)
    """Load the model in memory as the daemon would, and drop it."""
    import tempfile

    from pericard import environment, hardening, library
    from pericard.progress import bar
    from pericard.runtime import host
    from pericard.runtime.exported import pick_device
    from pericard.runtime.loader import load
    from pericard.trust import Pins, Policy, TrustState

    hardening.harden()
    with tempfile.TemporaryDirectory() as folder:
        state = TrustState(Path(folder) / "trust.json")  # empty: a check by hand remembers nothing
        device = pick_device("auto")
        here = environment.this_host(host.cuda([device]))
        policy = Policy(Pins.of(model.publisher), state, runtime=environment.describe().digest, host=here)
        with bar(f"opening {model.subject}") as progress:
            loaded = load(
                model, library.open_identity(identity), policy, device=device, now=int(time.time()),
                progress=progress,
            )  # fmt: skip
    loaded.close()
    told = f"right on {loaded.device} at batch sizes {', '.join(map(str, loaded.buckets))}"
    return told if loaded.batching is None else f"{told}; {loaded.batching}"


def _summary(found: Manifest) -> dict[str, Any]:
    about = found.description
    return {
        "model": about.name,
        "version": about.version,
        "sequence": about.sequence,
        "floor": about.floor,
        "kind": about.kind,
        "publisher": f"{about.publisher_name} ({found.publisher_id[:16]})",
        "created": datetime.fromtimestamp(min(found.created, _LAST_TIME), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "size": found.payload.size,
        "inputs": ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in about.inputs),
        "outputs": ", ".join(f"{item.spec.name} {item.spec.dtype}{list(item.spec.shape)}" for item in about.outputs),
        "batch": f"at most {about.max_batch}, asked as {', '.join(map(str, about.buckets))}",
        "tolerance": ", ".join(
            f"{name} atol {item.absolute:g} rtol {item.relative:g}" for name, item in about.tolerance.items()
        ),
        "signal": about.signal
        and f"{about.signal.sampling_rate:g} Hz, {about.signal.unit}, leads "
        f"{', '.join('/'.join(names) for names in about.signal.leads)}",
        "sealed_in": about.sealed_in,
        "needs_runtime": about.required_runtime,
        "needs_host": about.required_host and about.required_host.words(),
        "intended_use": about.intended_use,
    }
