"""``pericard seal | inspect | verify``: the vendor's verbs for a sealed model."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import msgspec

from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.sealed import Description, Manifest

_DAY = 86400
_EXISTING = click.Path(path_type=Path, dir_okay=False)


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Output(_Tensor, forbid_unknown_fields=True):
    meaning: str = ""
    threshold: float | None = None
    frame_seconds: float | None = None


class _Signal(msgspec.Struct, forbid_unknown_fields=True):
    sampling_rate: float
    unit: str
    leads: tuple[tuple[str, ...], ...]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    max: int = 32
    buckets: tuple[int, ...] = (1, 8, 32)


class _Tolerance(msgspec.Struct, forbid_unknown_fields=True):
    atol: Annotated[float, msgspec.Meta(ge=0)]
    rtol: Annotated[float, msgspec.Meta(ge=0, le=1)]


class _ModelFile(msgspec.Struct, forbid_unknown_fields=True):
    """``model.yaml``: what the vendor says of a model, in people's units."""

    name: str
    version: str
    sequence: int
    publisher: str
    intended_use: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Output, ...]
    floor: int = 0
    signal: _Signal | None = None
    batch: _Batch = msgspec.field(default_factory=_Batch)
    tolerance: dict[str, _Tolerance] = msgspec.field(default_factory=lambda: {"cpu": _Tolerance(1e-4, 1e-3)})
    required_runtime: str | None = None


@click.command()
@click.argument("artifact", type=_EXISTING)
@click.option("--manifest", "description", type=_EXISTING, required=True, help="model.yaml: what the model is.")
@click.option("--sign-with", type=_EXISTING, required=True, help="The publisher's private key.")
@click.option(
    "--archive", type=_EXISTING, required=True, help="The publisher's archive identity.pub, for later grants."
)
@click.option("-r", "--recipient", "recipients", type=_EXISTING, multiple=True, help="A hospital's identity.pub.")
@click.option(
    "--not-before", type=click.DateTime(["%Y-%m-%d"]), help="First day of the licence (UTC).  [default: today]"
)
@click.option("--not-after", type=click.DateTime(["%Y-%m-%d"]), help="Last day of the licence (UTC).")
@click.option("--days", type=click.IntRange(1, 36600), help="Length of the licence, instead of --not-after.")
@click.option("--grace-days", default=14, show_default=True, type=click.IntRange(0, 366))
@click.option("-o", "--output", type=FILE, required=True, help="The sealed model.")
def seal(
    artifact: Path,
    description: Path,
    sign_with: Path,
    archive: Path,
    recipients: tuple[Path, ...],
    not_before: datetime | None,
    not_after: datetime | None,
    days: int | None,
    grace_days: int,
    output: Path,
) -> None:
    """Seal ARTIFACT (a .pt2 of torch.export) for the recipients: signed, encrypted, licensed."""
    if (not_after is None) == (days is None):
        raise click.UsageError("Give either --not-after or --days.")
    from pericard import environment, sealed
    from pericard.keys import PublisherKey, Recipient
    from pericard.runtime import export

    begin = int(not_before.replace(tzinfo=UTC).timestamp()) if not_before else int(time.time()) // _DAY * _DAY
    end = begin + (days or 0) * _DAY
    if not_after:
        end = int(not_after.replace(tzinfo=UTC).timestamp()) + _DAY - 1
    about = _describe(description, runtime=environment.describe().digest)
    signer = PublisherKey.read(sign_with)
    # the archive's grant has no licence in it: it lasts as long as a date can
    terms = [sealed.Term(Recipient.read(archive), 0, (1 << 40) - 1, 0)]
    terms += [sealed.Term(Recipient.read(path), begin, end, grace_days) for path in recipients]
    made = sealed.seal(output, about, export.pack(artifact, about), signer=signer, terms=tuple(terms))
    click.echo(made.manifest_hash)
    click.echo(
        f"sealed {about.name} {about.version} for {len(recipients)} recipient(s) until {_day(end)}: {output}", err=True
    )


def _describe(path: Path, *, runtime: str) -> Description:
    import yaml

    from pericard.errors import UnsupportedModel
    from pericard.sealed import Description, Output, Signal, Tolerance
    from pericard.tensors import TensorSpec

    try:
        said = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), type=_ModelFile)
        return Description(
            name=said.name,
            version=said.version,
            sequence=said.sequence,
            floor=said.floor,
            kind="exported",
            publisher_name=said.publisher,
            intended_use=" ".join(said.intended_use.split()),
            inputs=tuple(TensorSpec(item.name, item.dtype, item.shape) for item in said.inputs),
            outputs=tuple(
                Output(TensorSpec(item.name, item.dtype, item.shape), item.meaning, item.threshold, item.frame_seconds)
                for item in said.outputs
            ),
            signal=Signal(said.signal.sampling_rate, said.signal.unit, said.signal.leads) if said.signal else None,
            max_batch=said.batch.max,
            buckets=said.batch.buckets,
            tolerance={name: Tolerance(item.atol, item.rtol) for name, item in said.tolerance.items()},
            sealed_in=runtime,
            required_runtime=said.required_runtime,
        )
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    except (ValueError, yaml.YAMLError) as error:  # msgspec's and TensorSpec's are ValueErrors
        reason = str(error).split("\n", maxsplit=1)[0].lower()
        raise UnsupportedModel(f"{path}: {reason}", hint="examples/ecg/model.yaml shows every field") from error


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
@click.option("-i", "--identity", type=_EXISTING, help="Also decrypt in memory and ask the known questions.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(file: Path, publisher: Path, identity: Path | None, as_json: bool) -> None:
    """Verify FILE: signatures and grants; with an identity, also that it opens, loads and answers right here."""
    from pericard.keys import Publisher
    from pericard.sealed import SealedModel

    with SealedModel(file) as source:
        model = source.verify([Publisher.read(publisher)])
        result: dict[str, Any] = _summary(model.manifest) | {
            "manifest": model.manifest_hash,
            "grants": [
                f"{grant.recipient[:16]} {_day(grant.not_before)} to {_day(grant.not_after)}" for grant in model.grants
            ],
        }
        if identity is not None:
            result["known_answers"] = _try(model, identity)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            click.echo(f"{key:<14} {value}")
    click.echo(f"verified: {file}", err=True)


def _try(model: Any, identity: Path) -> str:  # noqa: ANN401  (a VerifiedModel, not imported here)
    """Load the model in memory as the daemon would, and drop it."""
    import tempfile

    from pericard import environment, hardening
    from pericard.keys import Identity
    from pericard.runtime.exported import pick_device
    from pericard.runtime.loader import load
    from pericard.trust import Policy, TrustState

    hardening.harden()
    with tempfile.TemporaryDirectory() as folder:
        state = TrustState(Path(folder) / "trust.json")  # empty: a check by hand remembers nothing
        policy = Policy((model.publisher,), state, runtime=environment.describe().digest)
        loaded = load(model, Identity.read(identity), policy, device=pick_device("auto"), now=int(time.time()))
    loaded.close()
    return f"right on {loaded.device} at batch sizes {', '.join(map(str, loaded.description.buckets))}"


def _summary(found: Manifest) -> dict[str, Any]:
    about = found.description
    return {
        "model": about.name,
        "version": about.version,
        "sequence": about.sequence,
        "floor": about.floor,
        "kind": about.kind,
        "publisher": f"{about.publisher_name} ({found.publisher_id[:16]})",
        "created": datetime.fromtimestamp(found.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "size": found.payload.size,
        "inputs": ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in about.inputs),
        "outputs": ", ".join(f"{item.spec.name} {item.spec.dtype}{list(item.spec.shape)}" for item in about.outputs),
        "signal": about.signal
        and f"{about.signal.sampling_rate:g} Hz, {about.signal.unit}, leads "
        f"{', '.join('/'.join(names) for names in about.signal.leads)}",
        "sealed_in": about.sealed_in[:16],
        "intended_use": about.intended_use,
    }


def _day(moment: int) -> str:
    """A date; the archive's grant ends beyond what a calendar prints."""
    try:
        return datetime.fromtimestamp(moment, UTC).date().isoformat()
    except (ValueError, OverflowError):
        return "no end"
