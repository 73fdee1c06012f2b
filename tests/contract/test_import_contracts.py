"""The import contracts of pyproject.toml hold, and each of them can break: planted violations are caught by name."""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
SOURCES = {"pericard": "server/src", "pericard_client": "client/src"}


@dataclass(frozen=True)
class Violation:
    """One line that must not be in the tree.

    Attributes:
        module: the module that gets it, dotted.
        line: the import.
        contract: how the name of the contract that must catch it begins.
    """

    module: str
    line: str
    contract: str

    def __str__(self) -> str:
        return f"{self.module}: {self.line}"


LAYERS = "Server layers"
NETWORK = "P4: the process that parses the network"
WEIGHTS = "P4: the process that holds weights"
FRAMEWORK = "Only runtime knows a model framework"
FORMAT = "The sealed format needs nothing but cryptography"

VIOLATIONS = [
    Violation("pericard.engine", "import fastapi", WEIGHTS),
    Violation("pericard.engine", "import ssl", WEIGHTS),
    Violation("pericard.engine", "import pericard.auth", WEIGHTS),
    Violation("pericard.edge", "import torch", NETWORK),
    Violation("pericard.edge", "import pericard.runtime", NETWORK),
    Violation("pericard.edge", "import pericard.keys", NETWORK),
    Violation("pericard.forward", "import pericard.keys", "The forwarder reaches no key and no model"),
    Violation("pericard.settings", "import starlette", "Only edge and daemon know HTTP"),
    Violation("pericard.errors", "import torch", FRAMEWORK),
    Violation("pericard.sealed", "import pericard.runtime", LAYERS),
    Violation("pericard.sealed", "import msgspec", FORMAT),
    Violation("pericard.auth", "import pericard.audit", LAYERS),
    Violation("pericard.keys", "import pericard.edge", LAYERS),
    Violation("pericard.utils", "import os", LAYERS),
    Violation("pericard.pipe", "import numpy", "The pipe is standard library only"),
    Violation("pericard.runtime.first", "import pericard.runtime.second", "No cycles anywhere"),
    Violation("pericard_client.wire", "import pericard_client.cli", "Client layers"),
    Violation("pericard_client.client", "import pericard", "Client and server share a wire format"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both distributions' sources, in which every layer that the contracts name exists."""
    copy = tmp_path_factory.mktemp("tree")
    for package, source in SOURCES.items():
        shutil.copytree(ROOT / source / package, copy / source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for contract in CONTRACTS:
        for container in contract.get("containers", []):
            for layer in " | ".join(contract["layers"]).split(" | "):
                _write(copy, f"{container}.{layer}", "")
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def _write(tree: Path, module: str, line: str) -> None:
    """Append a line to a module of the copy, making the module and its packages where they are missing."""
    folder = tree / SOURCES[module.partition(".")[0]]
    *packages, name = module.split(".")
    for package in packages:
        folder /= package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    file = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    with file.open("a") as stream:
        stream.write(f"\n{line}\n")


def _lint(tree: Path) -> tuple[int, list[str], str]:
    """Run the linter on a copy.

    Returns:
        Its exit status, the names of the broken contracts, and all that it said.
    """
    path = os.pathsep.join(str(tree / source) for source in SOURCES.values())
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    broken = [line.removesuffix(" BROKEN") for line in said.splitlines() if line.endswith(" BROKEN")]
    return done.returncode, broken, said


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    status, broken, said = _lint(tree)

    assert (status, broken) == (0, []), said
    assert f"{len(CONTRACTS)} kept, 0 broken" in said


@pytest.mark.parametrize("violation", VIOLATIONS, ids=str)
def test_a_planted_violation_breaks_its_contract(tree: Path, tmp_path: Path, violation: Violation) -> None:
    # the linter's cache comes along, so only the planted file is read anew
    planted = shutil.copytree(tree, tmp_path / "tree")
    if violation.contract == "No cycles anywhere":
        _write(planted, "pericard.runtime.second", "import pericard.runtime.first")
    _write(planted, violation.module, violation.line)

    status, broken, said = _lint(planted)

    assert status == 1, said
    assert any(name.startswith(violation.contract) for name in broken), said


def test_every_contract_is_broken_by_some_violation() -> None:
    uncovered = [
        contract["name"]
        for contract in CONTRACTS
        if not any(contract["name"].startswith(violation.contract) for violation in VIOLATIONS)
    ]

    assert uncovered == []
