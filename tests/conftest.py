"""Shared parts: two publishers, three identities, one tiny model, and ways to seal others.

Keys come from fixed seeds, so that a failure repeats; every time is relative to ``NOW``, never to the clock. What needs
torch imports it inside its fixture, so that tests of the format run without it. Nothing here is changed by a test:
whoever wants another file seals one, or copies bytes.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pericard import canonical, hardening
from pericard.errors import PericardError, SealedModelError, TrustError
from pericard.keys import Identity, PublisherKey, Signature
from pericard.sealed import Description, Output, SealedModel, Signal, Term, Tolerance, layout, seal
from pericard.tensors import TensorSpec
from pericard.trust import Pins, Policy, TrustState

NOW = 1_790_000_000  # 2026-09-21T14:13:20Z
DAY = 86_400
RUNTIME = "ab" * 32

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what tests start would be deaf too
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Writes a sealed model: plaintext, then what differs from the tiny model's description, ``terms`` or ``signer``.
SealBytes = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _sealing_in_this_process() -> Iterator[None]:
    """A test that seals by the command's function must not take the network from the tests after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardening, "drop_network", lambda: True)
        yield


@pytest.fixture(scope="session")
def now() -> int:
    """The time at which tests take place; every grant of :func:`terms` is valid."""
    return NOW


@pytest.fixture(scope="session")
def publisher_key() -> PublisherKey:
    """The vendor, whom :func:`policy` pins."""
    return PublisherKey(bytes(range(64)))


@pytest.fixture(scope="session")
def foreign_key() -> PublisherKey:
    """A vendor whom nobody pinned."""
    return PublisherKey(bytes(64))


@pytest.fixture(scope="session")
def identity() -> Identity:
    """The hospital."""
    return Identity(b"hospital".ljust(32))


@pytest.fixture(scope="session")
def archive() -> Identity:
    """The vendor's own identity, from which later grants are made."""
    return Identity(b"archive".ljust(32))


@pytest.fixture(scope="session")
def stranger() -> Identity:
    """An identity without a grant."""
    return Identity(b"stranger".ljust(32))


@pytest.fixture(scope="session")
def terms(identity: Identity, archive: Identity) -> tuple[Term, ...]:
    """The archive for ever, and the hospital for thirty days and a fortnight's grace."""
    return (
        Term(archive.recipient, 0, (1 << 40) - 1, 0),
        Term(identity.recipient, NOW - DAY, NOW + 30 * DAY, 14),
    )


@pytest.fixture(scope="session")
def tiny_description() -> Description:
    """What the tiny model's manifest says: one lead at 250 Hz, a score and a timeline."""
    return Description(
        name="tiny",
        version="1.0.0",
        sequence=3,
        floor=2,
        kind="exported",
        publisher_name="Test vendor",
        intended_use="a model for tests",
        inputs=(TensorSpec("ecg", "float32", (-1, 1, 64)),),
        outputs=(
            Output(TensorSpec("score", "float32", (-1,)), "score", 0.5),
            Output(TensorSpec("timeline", "float32", (-1, 15)), "timeline", None, 0.016),
        ),
        signal=Signal(250, "mV", (("II", "MLII"),)),
        max_batch=4,
        buckets=(1, 4),
        tolerance={"cpu": Tolerance(1e-6, 1e-5)},
        sealed_in=RUNTIME,
        required_runtime=None,
    )


@pytest.fixture(scope="session")
def export_pt2(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``export_pt2(module, *example inputs)`` writes a ``.pt2``, its first axes dynamic unless ``fixed=True``."""
    import torch

    def export(module: Any, *inputs: Any, fixed: bool = False) -> Path:
        batch = torch.export.Dim("batch", min=1, max=64)
        shapes = None if fixed else tuple({0: batch} for _ in inputs)
        path = tmp_path_factory.mktemp("exported") / "model.pt2"
        with warnings.catch_warnings():  # torch gives advice to whoever exports; none of it is ours
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(module.eval(), inputs, dynamic_shapes=shapes), path)
        return path

    return export


@pytest.fixture(scope="session")
def tiny_pt2(export_pt2: Callable[..., Path]) -> Path:
    """A convolution and a linear layer, about twenty weights, as a vendor would export them."""
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.conv = torch.nn.Conv1d(1, 3, 8, 4)
            self.head = torch.nn.Linear(3, 1)

        def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            timeline = torch.sigmoid(self.head(torch.relu(self.conv(ecg)).transpose(1, 2)))[..., 0]
            return timeline.amax(1), timeline

    return export_pt2(Tiny(), torch.zeros(2, 1, 64))


@pytest.fixture(scope="session")
def tiny_graph(tiny_pt2: Path) -> bytes:
    """The tiny model's graph as it is sealed; change a copy."""
    from pericard.runtime import export, graph, pt2

    return graph.normalise(export.serialised(pt2.read(tiny_pt2)))


@pytest.fixture(scope="session")
def sealed_model(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pt2: Path,
    tiny_description: Description,
    publisher_key: PublisherKey,
    terms: tuple[Term, ...],
) -> Path:
    """The tiny model, sealed once; do not write to it."""
    from pericard.runtime import export

    path = tmp_path_factory.mktemp("sealed") / "tiny.sealed"
    seal(path, tiny_description, export.pack(tiny_pt2, tiny_description), signer=publisher_key, terms=terms)
    return path


@pytest.fixture(scope="session")
def seal_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_description: Description,
    publisher_key: PublisherKey,
    terms: tuple[Term, ...],
) -> SealBytes:
    """``seal_bytes(plain, sequence=4, terms=…, signer=…)``, for tests that stop before the model."""
    defaults = terms

    def build(
        plain: bytes,
        *,
        terms: tuple[Term, ...] = defaults,
        signer: PublisherKey = publisher_key,
        **changes: Any,
    ) -> Path:
        path = tmp_path_factory.mktemp("sealed") / "model.sealed"
        about = replace(tiny_description, **changes)
        seal(path, about, (len(plain), iter([plain])), signer=signer, terms=terms)
        return path

    return build


@pytest.fixture
def policy(publisher_key: PublisherKey, tmp_path: Path) -> Policy:
    """A site that pins the vendor and remembers nothing yet."""
    return Policy(Pins.of(publisher_key.publisher), TrustState(tmp_path / "trust.json"), runtime=RUNTIME)


@dataclass(frozen=True)
class Parts:
    """A sealed file, taken apart; ``data`` puts it together again with lengths that fit."""

    manifest: bytes
    signatures: tuple[Signature, ...]
    grants: tuple[tuple[bytes, tuple[Signature, ...]], ...]
    chunks: tuple[bytes, ...]

    def sections(self) -> tuple[bytes, bytes, bytes]:
        """Manifest, signatures and grants as they stand in the file."""
        packed = tuple(layout.pack_grant(*grant) for grant in self.grants)
        return self.manifest, layout.pack_signatures(self.signatures), layout.pack_grants(packed)

    def fields(self) -> dict[str, Any]:
        """What the manifest says."""
        return canonical.decode(self.manifest, limit=layout.MAX_MANIFEST)

    def data(self) -> bytes:
        """The file's bytes."""
        lengths = layout.Lengths(*map(len, self.sections()))
        head = layout.pack_header(lengths) + b"".join(self.sections())
        return head.ljust(lengths.payload_offset, b"\0") + b"".join(self.chunks)


@pytest.fixture(scope="session")
def take_apart() -> Callable[[Path], Parts]:
    """Take a sealed file apart, for whoever wants to put it together otherwise."""

    def run(path: Path) -> Parts:
        with SealedModel(path) as source:
            payload = path.read_bytes()[source.payload_offset :]
            stored = layout.CHUNK_SIZE + layout.TAG_SIZE
            chunks = tuple(payload[place : place + stored] for place in range(0, len(payload), stored))
            return Parts(source.manifest_bytes, source.signatures, tuple(source.packed_grants), chunks)

    return run


@pytest.fixture
def opened(policy: Policy, identity: Identity, now: int, tmp_path: Path) -> Callable[..., bytearray]:
    """Everything that the loader does with a sealed file before it reads the plaintext, which is returned."""

    def run(data: bytes, *, at: int = now) -> bytearray:
        (tmp_path / "it").write_bytes(data)
        with SealedModel(tmp_path / "it") as source:
            model = source.verify(policy.publishers)
            licence = policy.accept(model, identity.recipient.id, at)
            target = bytearray(model.manifest.payload.size)
            model.decrypt_into(model.unwrap(licence.grant, identity), memoryview(target))
            return target

    return run


@pytest.fixture
def refused(opened: Callable[..., bytearray]) -> Callable[..., str]:
    """Open bytes that must be refused, and return the code of the refusal."""

    def run(data: bytes, **how: Any) -> str:
        with pytest.raises((SealedModelError, TrustError)) as caught:
            opened(data, **how)
        assert type(caught.value).code != PericardError.code  # only leaves are raised
        return caught.value.code

    return run


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory in memory where there is one: these tests sync thousands of times."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
