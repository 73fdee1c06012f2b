"""The notebook example does what its cells say, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "notebook.py"


def test_the_cells_run_from_top_to_bottom(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)],
        capture_output=True, text=True, timeout=110, check=False, env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    sealed, model, scores, refused = done.stdout.splitlines()
    assert len(sealed.removeprefix("sealed ")) == 64
    assert model == "<sealed model ecg-anomaly 1.0.0 on cpu: ecg float32[-1, 1, 2500]> licence valid"
    assert scores == "scores (40,) timeline (40, 157)"
    assert refused == "corrupt-payload - tampered.sealed: chunk 0 is not the one that the publisher signed"
    assert (tmp_path / "trust.json").stat().st_mode & 0o077 == 0
