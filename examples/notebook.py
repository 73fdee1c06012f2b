"""A sealed model in a notebook: the same checks as the server's, no server. Run the cells, or the file as it is.

The cells want an empty folder of their own to work in, which they make if it is missing, and the demonstration model of
``examples/ecg``. What is there is never overwritten: for another run, name another folder.
"""

# %% Keys: the vendor's, for signing and for later grants; the hospital's
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import pericard
from pericard.keys import Identity, PublisherKey

examples = Path(__file__).parent
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="pericard-"))
folder.mkdir(parents=True, exist_ok=True)
PublisherKey.generate(folder / "vendor.key").publisher.write(folder / "vendor.pub")
for name in ("archive", "identity"):
    Identity.generate(folder / f"{name}.key").recipient.write(folder / f"{name}.pub")

# %% The vendor: export the model, seal it for the hospital for a year
sys.path.insert(0, str(examples / "ecg"))
from stripnet import StripNet  # noqa: E402  (it lies in the folder that was just named)

module = StripNet()
module.load_state_dict(torch.load(examples / "ecg" / "stripnet.pth", weights_only=True))
program = torch.export.export(
    module.eval(), (torch.zeros(2, 1, 2500),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
)
sealed = pericard.seal(
    program,
    folder / "ecg.sealed",
    about=examples / "ecg" / "model.yaml",
    sign_with=folder / "vendor.key",
    archive=folder / "archive.pub",
    terms=[pericard.term(folder / "identity.pub", days=365)],
    remark=print,
)
print("sealed", sealed.manifest_hash)

# %% The hospital: load it with every check, and ask
model = pericard.load(
    folder / "ecg.sealed",
    identity=folder / "identity.key",
    trust=folder / "vendor.pub",
    state=folder / "trust.json",
)
print(model, "licence", model.licence)
strips = np.random.default_rng(1).normal(0, 0.1, (40, 1, 2500)).astype(np.float32)
answers = model(strips)
print("scores", answers["score"].shape, "timeline", answers["timeline"].shape)

# %% The weights are zeroed here, not when the interpreter feels like it
model.close()

# %% What is refused says why
tampered = bytearray((folder / "ecg.sealed").read_bytes())
tampered[-1000] ^= 1
(folder / "tampered.sealed").write_bytes(tampered)
try:
    pericard.load(folder / "tampered.sealed", identity=folder / "identity.key", trust=folder / "vendor.pub")
except pericard.errors.PericardError as error:
    print(error.code, "-", error.message)
