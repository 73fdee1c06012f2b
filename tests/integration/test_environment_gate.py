"""The environment is judged before a key is touched: refused by name, or served and shown."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from integration_site import Site, pericard, running
from packaging.requirements import Requirement

import pericard as package
from pericard.environment import injected

pytestmark = pytest.mark.integration
SERVED = ("identity.key", "log.key", "tls.key", "tiny.sealed", "tokens.json", "trust.json")


def configure(site: Site, mode: str, manifest: Path | str) -> None:
    path = site.folder / "server.yaml"
    path.write_text(f"{path.read_text()}environment: {{mode: {mode}, manifest: {manifest}}}\n")


def records(site: Site) -> list[dict[str, Any]]:
    shown = pericard("audit", "show", "audit", "--json", "--limit", 10_000, cwd=site.folder).stdout
    return [json.loads(line) for line in shown.splitlines()]


def entry(path: Path) -> dict[str, Any]:
    mode = f"{path.lstat().st_mode & 0o7777:o}"
    if path.is_symlink():
        return {"type": "link", "target": str(path.readlink())}
    if path.is_dir():
        return {"type": "folder", "mode": mode}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"type": "file", "mode": mode, "size": path.stat().st_size, "sha256": digest}


def write_manifest(path: Path, prefix: Path) -> None:
    files = {str(found.relative_to(prefix)): entry(found) for found in prefix.rglob("*")}
    lock = {"sha256": "aa" * 32, "publisher": "bb" * 32, "packages": 7}
    value = {"format": "pericard-environment-manifest", "version": 1, "kind": "conda", "prefix": str(prefix)}
    path.write_text(json.dumps(value | {"lock": lock, "digest": "dd" * 32, "files": files}))
    path.chmod(0o644)


# --- without a manifest


def test_without_a_manifest_it_serves_and_says_so(site: Site, strip: list[float]) -> None:
    configure(site, "auto", "none.json")
    with running(site) as daemon:
        shown = daemon.request("/v2").body["environment"]
        metrics = str(daemon.request("/metrics", token=site.metrics_token).body["text"])
        runtime = daemon.predict(strip).body["runtime"]
    start = records(site)[0]

    assert isinstance(shown, dict)
    assert (shown["mode"], shown["state"], shown["kind"], shown["lock"]) == ("warn", "unlocked", "pip", None)
    assert (shown["driver"], shown["cuda"], shown["cudnn"]) == (None, None, None)
    assert shown["digest"] == start["runtime"] == runtime
    assert start["environment"] == shown
    (line,) = [line for line in metrics.splitlines() if line.startswith("pericard_environment_info{")]
    assert line.endswith(" 1.0")
    assert all(f'{name}="{shown[name] or ""}"' in line for name in shown if name != "findings")
    assert f"pericard_environment_findings {float(shown['findings'])}" in metrics


def test_what_gets_in_is_said_in_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(site, "warn", "none.json")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    with running(site) as daemon:
        findings = daemon.request("/v2").body["environment"]["findings"]  # type: ignore[index]
    done = pericard("serve", "--config", "server.yaml", "--check", cwd=site.folder)

    assert findings >= 1
    assert done.returncode == 0


# --- with one


@pytest.fixture
def spoiled(site: Site) -> Path:
    """A manifest that says nothing that can be read."""
    path = site.folder / "environment.json"
    path.write_text("{}")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("mode", ["auto", "enforce"])
def test_an_unusable_manifest_is_refused_and_no_passphrase_is_asked_for(site: Site, spoiled: Path, mode: str) -> None:
    configure(site, mode, spoiled)
    text = (site.folder / "server.yaml").read_text()
    (site.folder / "server.yaml").write_text(f"{text}identity: {{path: identity.key, unlock: passphrase}}\n")
    (site.folder / "identity.key").unlink()  # whoever asked for it would say that it is not there
    (site.folder / "log.key").unlink()
    done = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)

    assert done.returncode == 1
    assert f"pericard: error: {spoiled}: is not an environment manifest" in done.stderr
    assert "hint: " in done.stderr
    assert "assphrase" not in done.stdout + done.stderr
    for options in (("--check",), ("--inline",)):
        done = pericard("serve", "--config", "server.yaml", *options, cwd=site.folder, check=False)
        assert (done.returncode, "is not an environment manifest" in done.stderr) == (1, True)
    assert not (site.folder / "audit").exists()


def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        assert not os.environ.get("CI"), "strace is missing: make system installs it"
        pytest.skip("strace is not on this machine; make system installs it")
    return found


def opened(site: Site, trace: Path) -> set[str]:
    """Which of the site's files a start opens, as the kernel saw it."""
    subprocess.run(
        [strace(), "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", trace, sys.executable, "-B", "-m", "pericard",
         "serve", "--config", site.folder / "server.yaml"],
        cwd=site.folder, capture_output=True, timeout=200, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )  # fmt: skip
    text = trace.read_text(errors="replace")
    assert "server.yaml" in text, "strace saw too little to mean anything"
    return {name for name in SERVED if f'{site.folder}/{name}"' in text}


def test_a_refused_start_opens_no_key(site: Site, spoiled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("traces")
    configure(site, "auto", spoiled)
    assert opened(site, folder / "refused") == set()

    spoiled.unlink()  # the same start without a manifest reads them, until something else refuses it
    (site.folder / "identity.key").write_text("none\n")
    assert {"log.key", "identity.key"} <= opened(site, folder / "unlocked")


@pytest.fixture
def elsewhere(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of another environment than the one that runs."""
    if os.getuid() != 0:
        pytest.skip("a manifest belongs to root")
    prefix = tmp_path_factory.mktemp("elsewhere")
    prefix.chmod(0o755)
    (prefix / "file").write_text("it")
    site.folder.chmod(0o755)
    path = site.folder / "environment.json"
    write_manifest(path, prefix)
    return path


@pytest.mark.parametrize("name", sorted(injected.VARIABLES.keys() - {"PYTHONHOME", "PYTHONPLATLIBDIR"}))
def test_each_variable_is_refused_by_name(site: Site, elsewhere: Path, name: str) -> None:
    """Those two keep python itself from starting here."""
    configure(site, "auto", elsewhere)
    given = name.replace("*", "64")
    value = str(site.folder / "nothing")
    words = ["pericard", "serve", "--config", "server.yaml"]
    code = f"import sys; from pericard.cli.main import run; sys.argv = {words!r}; run()"
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", code], cwd=site.folder, capture_output=True, text=True, timeout=60,
        check=False, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], given: value},
    )  # fmt: skip

    assert f"{given}: is set; {' '.join(injected.VARIABLES[name])}" in done.stderr
    assert done.stderr.count("pericard: error: environment: ") == 1
    assert done.returncode != 0 or name == "PYTHONINSPECT"


# --- a whole environment, as a lock would have installed it


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This interpreter and its packages in one folder, as conda lays them out; hard links where that is possible."""
    if os.getuid() != 0 or Path(sys.prefix).stat().st_uid != 0:
        pytest.skip("an installed environment belongs to root")
    place = tmp_path_factory.mktemp("installed") / "env"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (place / "lib").mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "conda-meta").mkdir()
    shutil.copy(Path(sys.executable).resolve(), place / "bin" / version)
    (place / "bin" / "python").symlink_to(version)
    standard, packages = Path(sys.base_prefix, "lib", version), Path(sys.prefix, "lib", version, "site-packages")
    copied(standard, place / "lib" / version, leave=("site-packages", "dist-packages", "test"))
    tops = needed("pericard-server")
    asked = "import site; print(site.getsitepackages()[0])"
    command = [place / "bin" / version, "-I", "-B", "-c", asked]
    target = Path(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip())
    copied(packages, target, leave=tuple({path.name for path in packages.iterdir()} - tops))
    for linked in target.glob("__editable__*"):
        linked.unlink()
    for about in target.glob("pericard_*.dist-info"):
        (about / "direct_url.json").unlink()
    shutil.copytree(Path(package.__file__).parent, target / "pericard", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (place, *place.parents[:3]):
        path.chmod(0o755)
    yield place
    shutil.rmtree(place)


def needed(name: str) -> set[str]:
    """What a server's packages put into site-packages, without what tests and tools need."""
    names, tops = [name], set()
    seen: set[str] = set()
    while names:
        found = distribution(names.pop())
        if found.name in seen:
            continue
        seen.add(found.name)
        tops |= {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "__pycache__"}}
        wanted = map(Requirement, found.requires or ())
        names += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return tops


def copied(source: Path, target: Path, *, leave: tuple[str, ...] = ()) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name in leave:
            continue
        for option in ("-al", "-a"):
            if subprocess.run(["cp", option, path, target], capture_output=True, check=False).returncode == 0:
                break
    for path in (target, *target.rglob("*")):
        if not path.is_symlink() and path.lstat().st_mode & 0o022:
            path.chmod(path.lstat().st_mode & 0o755)


@pytest.fixture(scope="session")
def locked(prefix: Path) -> Path:
    path = prefix.with_name("environment.json")
    write_manifest(path, prefix)
    return path


def start(site: Site, prefix: Path) -> subprocess.CompletedProcess[str]:
    """A start that is to be refused."""
    return subprocess.run(
        [prefix / "bin" / "python", "-I", "-B", "-m", "pericard", "serve", "--config", site.folder / "server.yaml"],
        cwd=site.folder, capture_output=True, text=True, timeout=120, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip


def test_a_whole_environment_is_verified_and_each_harm_to_it_is_refused(site: Site, prefix: Path, locked: Path) -> None:
    configure(site, "auto", locked)
    process = subprocess.Popen(
        [prefix / "bin" / "python", "-I", "-B", "-m", "pericard", "serve", "--config", site.folder / "server.yaml"],
        cwd=site.folder, stderr=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if ": serving " in line:
                break
        assert ": serving " in said[-1], said
        assert not [line for line in said if "environment" in line]
    finally:
        process.terminate()
        process.communicate(timeout=40)
    shown = records(site)[0]["environment"]
    assert (shown["mode"], shown["state"], shown["kind"], shown["findings"]) == ("enforce", "verified", "conda", 0)
    assert (shown["lock"], shown["digest"]) == ("aa" * 32, "dd" * 32)

    victim = next(prefix.glob("lib/python3*/**/pericard/settings.py"))
    source, mode = victim.read_bytes(), victim.stat().st_mode
    for path, data, words in (
        (victim, source[:-1] + b" ", "is not what was installed"),
        (victim.parents[1] / "stray.pth", b"", "python runs it at every start"),
    ):
        path.unlink(missing_ok=True)  # never into a file that has another name too
        path.write_bytes(data)
        path.chmod(mode)
        done = start(site, prefix)
        path.unlink()
        if path == victim:
            path.write_bytes(source)
            path.chmod(mode)
        assert done.returncode == 1, done.stderr
        assert f"pericard: error: environment: 1 finding: {path.relative_to(prefix)}: " in done.stderr
        assert words in done.stderr
