"""What hosts the daemon says what it should: the systemd unit, the alerts, the image and the manifests.

Everything here is linted by the tools of its field, and each linter is shown to find a planted fault. Nothing is
started; running the unit, the image and the pod is tested elsewhere, later.
"""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pericard import settings
from pericard.engine.forwarding import Forwarding
from pericard.environment import injected
from pericard.errors import leaves
from pericard.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "configs" / "systemd" / "pericard.service"
PROMETHEUS = ROOT / "configs" / "prometheus"
DOCKER = ROOT / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.33"
MANIFEST = "/etc/pericard/environment.json"
VERIFIER = "/usr/local/libexec/pericard/verify-environment"
HIGHEST_EXPOSURE = 16  # tenths; systemd calls 100 the worst
COMMAND = ["/opt/pericard/bin/pericard", "serve", "--config", "/etc/pericard/server.yaml"]


def _component(name: str) -> str:
    """The path of a tool; in CI a missing one fails the test, elsewhere it skips."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed; `make system` and `make env` bring it")
        pytest.skip(f"{name} is not installed")
    return found


def _run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_component(name), *arguments], capture_output=True, text=True, timeout=60, check=False)


def _yaml(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


# --- systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as installed, but for the program, which must exist to be verified."""
    copy = tmp_path / "pericard.service"
    text = UNIT.read_text()
    assert COMMAND[0] in text
    copy.write_text(text.replace(COMMAND[0], _component("true")))
    return copy


def test_systemd_accepts_the_unit_without_a_word(unit: Path) -> None:
    done = _run("systemd-analyze", "verify", unit)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("line", ["ProtectSytem=strict", "SystemCallFilter=no_such_call", "ExecStopPost=/no/such/file"])
def test_systemd_finds_a_planted_fault(unit: Path, line: str) -> None:
    unit.write_text(unit.read_text().replace("[Install]", f"{line}\n\n[Install]"))

    done = _run("systemd-analyze", "verify", unit)

    assert done.returncode != 0 or done.stderr


def test_the_unit_is_hardened(unit: Path) -> None:
    done = _run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", unit)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("protection", ["NoNewPrivileges=yes", "ProtectSystem=strict", "RestrictNamespaces=yes"])
def test_a_unit_without_a_protection_passes_the_threshold_no_more(unit: Path, protection: str) -> None:
    unit.write_text(unit.read_text().replace(f"{protection}\n", ""))

    done = _run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", unit)

    assert done.returncode != 0, done.stdout


def test_the_engine_may_lock_itself_in_and_nothing_is_ever_swapped_or_dumped() -> None:
    lines = UNIT.read_text().splitlines()
    allowed = {call for line in lines if line.startswith("SystemCallFilter=") for call in line.split("=")[1].split()}

    assert {"seccomp", "landlock_restrict_self", "memfd_secret"} <= allowed
    assert {"LimitCORE=0", "LimitMEMLOCK=infinity", "MemorySwapMax=0", "CapabilityBoundingSet="} <= set(lines)


def test_the_account_can_be_made() -> None:
    done = _run("systemd-sysusers", "--dry-run", UNIT.with_name("pericard.sysusers.conf"))

    assert done.returncode == 0, done.stderr


def test_the_unit_and_the_image_start_the_same_command() -> None:
    words = entry_point()

    assert words[-len(COMMAND) :] == COMMAND
    assert f"ExecStart={' '.join(COMMAND)}" in UNIT.read_text().splitlines()


def entry_point() -> list[str]:
    """What the image starts."""
    entry = re.search(r"^ENTRYPOINT (\[[^]]+\])$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    words: list[str] = yaml.safe_load(entry[1].replace("\\\n", ""))
    return words


def test_both_verify_the_environment_from_outside_of_it_first() -> None:
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStartPre=")]
    outside = ["/usr/bin/python3", "-I", "-S"]

    assert f"exec {' '.join(outside)} {VERIFIER} {MANIFEST}'" in line
    assert f"[ ! -e {MANIFEST} ] ||" in line
    assert entry_point()[: -len(COMMAND)] == [*outside, "/usr/local/libexec/pericard/verified.py", MANIFEST, VERIFIER]
    assert settings.EnvironmentSettings().manifest == MANIFEST
    copied = f"COPY server/src/pericard/environment/verifier.py {VERIFIER}"
    assert copied in (DOCKER / "Dockerfile").read_text().splitlines()


def test_the_unit_clears_every_variable_that_injects_code() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if line.startswith("UnsetEnvironment=")]
    cleared = {name for line in lines for name in line.partition("=")[2].split()}
    patterns = [re.escape(name).replace(r"\*", r"\w*") for name in injected.VARIABLES]

    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in cleared)] == []
    assert [name for name in cleared if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def _first(tmp_path: Path, manifest: str, verifier: str) -> subprocess.CompletedProcess[str]:
    """Run the image's first program with a verifier of two lines, and a server that says so."""
    (tmp_path / "verifier.py").write_text(verifier)
    command = [
        sys.executable, "-I", "-S", DOCKER / "verified.py", manifest, tmp_path / "verifier.py",
        _component("echo"), "serving", "it",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_image_starts_its_server_only_after_a_clean_verdict(tmp_path: Path, status: int) -> None:
    manifest = tmp_path / "environment.json"
    manifest.write_text("{}")
    saying = f"import sys; assert sys.argv[1:] == [{str(manifest)!r}] and sys.flags.isolated; sys.exit({status})"
    done = _first(tmp_path, str(manifest), saying)

    assert (done.returncode, done.stdout, done.stderr) == (status, "" if status else "serving it\n", "")


def test_the_image_without_a_manifest_asks_no_verifier_and_one_that_is_hidden_is_refused(tmp_path: Path) -> None:
    assert _first(tmp_path, str(tmp_path / "none.json"), "raise SystemExit(1)").stdout == "serving it\n"

    hidden = _first(tmp_path, str(tmp_path / "verifier.py" / "environment.json"), "")
    assert (hidden.returncode, hidden.stdout) == (2, "")
    assert "whether it is there cannot be seen" in hidden.stderr


# --- Prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Path:
    """The configuration beside the files that the operator provides."""
    folder = Path(shutil.copytree(PROMETHEUS, tmp_path / "prometheus"))
    (folder / "pericard").mkdir()
    for name in ("metrics.token", "ca.pem"):
        (folder / "pericard" / name).write_text("made by the operator")
    return folder


def test_prometheus_accepts_its_configuration(prometheus: Path) -> None:
    done = _run("promtool", "check", "config", prometheus / "prometheus.yml")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("prometheus.yml", "scheme: https", "scheem: https"),
        ("alerts.yml", "pericard_models_ready == 0", "pericard_models_ready == "),
    ],
)
def test_promtool_finds_a_planted_fault(prometheus: Path, file: str, old: str, new: str) -> None:
    text = (prometheus / file).read_text()
    assert old in text
    (prometheus / file).write_text(text.replace(old, new))

    assert _run("promtool", "check", "config", prometheus / "prometheus.yml").returncode != 0


def test_every_alert_fires_when_it_should_and_none_otherwise() -> None:
    done = _run("promtool", "test", "rules", Path(__file__).with_name("alerts.test.yml"))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = Path(__file__).with_name("alerts.test.yml").read_text()
    for rule in _yaml(PROMETHEUS / "alerts.yml")["groups"][0]["rules"]:
        assert f'alertname="{rule["alert"]}"' in tests
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}


def _metrics() -> dict[str, set[str]]:
    """Every series that the daemon exports, with the names of its labels."""
    registry = Metrics().registry
    registry.register(Forwarding(Path("none"), lambda: 0))
    return {
        name: set(getattr(collector, "_labelnames", ())) | ({"le"} if name.endswith("_bucket") else set())
        for collector, names in registry._collector_to_names.items()
        for name in names
    }


def test_the_alerts_use_only_the_daemons_metrics_and_codes() -> None:
    metrics = _metrics()
    for rule in _yaml(PROMETHEUS / "alerts.yml")["groups"][0]["rules"]:
        for name, matchers in re.findall(r"\b(pericard_\w+)(\{[^}]*\})?", rule["expr"]):
            assert name in metrics
            matched = dict(re.findall(r"(\w+)[=!~]+\"([^\"]*)\"", matchers))
            assert set(matched) <= metrics[name]
            assert set(matched.get("code", "ok").split("|")) <= {"ok", *leaves()}


# --- the image


def test_hadolint_accepts_the_image() -> None:
    done = _run("hadolint", DOCKER / "Dockerfile")

    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_a_planted_fault(tmp_path: Path) -> None:
    planted = tmp_path / "Dockerfile"
    planted.write_text((DOCKER / "Dockerfile").read_text() + "RUN cd /tmp && sudo apt-get upgrade\n")

    assert _run("hadolint", planted).returncode != 0


def test_the_image_runs_as_nobody_in_particular_and_without_a_shell() -> None:
    final = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2]

    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001:10001"]
    assert final.index("USER 10001") < final.index("ENTRYPOINT")
    assert re.search(r"^HEALTHCHECK .*\\\n  CMD \[", final, re.MULTILINE)
    assert not re.search(r"^(ADD|VOLUME|CMD|ARG .*(KEY|TOKEN|SECRET|PASSWORD))\b", final, re.MULTILINE)


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)

    assert rules[0] == "*"
    assert all((ROOT / path).exists() for path in allowed)
    assert {path.split("/")[0] for path in allowed} == {path.split("/")[0] for path in copied}
    assert all(any(path.startswith(source) or source.startswith(path) for path in allowed) for source in copied)


class _Health(http.server.HTTPServer):
    """Answers ``/livez`` with its ``status``."""

    status = 200


class _HealthHandler(http.server.BaseHTTPRequestHandler):
    server: _Health

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def health() -> Iterator[_Health]:
    server = _Health(("127.0.0.1", 0), _HealthHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def _livez(port: int, *options: str) -> int:
    command = [sys.executable, "-I", DOCKER / "livez.py", "127.0.0.1", str(port), *options]
    return subprocess.run(command, timeout=30, check=False).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_follows_the_status(health: _Health, status: int, expected: int) -> None:
    health.status = status

    assert _livez(health.server_port, "--plain") == expected


def test_the_health_check_fails_where_nothing_listens_or_no_tls_is_spoken(health: _Health) -> None:
    assert _livez(health.server_port) == 1

    health.shutdown()
    health.server_close()
    assert _livez(health.server_port, "--plain") == 1


def test_compose_takes_every_privilege_away() -> None:
    for name, service in _yaml(DOCKER / "compose.yaml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["ulimits"]["core"] == 0, name
        assert not service["user"].startswith("0"), name
        assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & set(service), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        mounts = [mount for mount in service["volumes"] if mount["type"] == "bind"]
        assert all(mount["read_only"] for mount in mounts), name


def test_compose_gives_the_server_locked_memory_and_no_swap() -> None:
    server = _yaml(DOCKER / "compose.yaml")["services"]["pericard"]

    assert server["ulimits"]["memlock"] == -1
    assert server["memswap_limit"] == server["mem_limit"]


def test_compose_mounts_files_that_are_there() -> None:
    for service in _yaml(DOCKER / "compose.yaml")["services"].values():
        for mount in service["volumes"]:
            if mount["source"].startswith("../"):
                assert (DOCKER / mount["source"]).is_file()


# --- Kubernetes


def test_every_manifest_is_here() -> None:
    kinds = {_yaml(path)["kind"] for path in MANIFESTS}

    assert kinds == {"Namespace", "Deployment", "Service", "NetworkPolicy", "PersistentVolumeClaim"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_fits_the_published_schema(path: Path) -> None:
    done = _run("kubernetes-validate", "-k", KUBERNETES, "--strict", path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_finds_a_misspelt_field(tmp_path: Path) -> None:
    planted = tmp_path / "deployment.yaml"
    text = (DOCKER / "kubernetes" / "deployment.yaml").read_text()
    assert "readOnlyRootFilesystem" in text
    planted.write_text(text.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"))

    assert _run("kubernetes-validate", "-k", KUBERNETES, "--strict", planted).returncode != 0


def test_the_namespace_enforces_what_the_pod_keeps() -> None:
    labels = _yaml(DOCKER / "kubernetes" / "namespace.yaml")["metadata"]["labels"]
    pod = _yaml(DOCKER / "kubernetes" / "deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]

    # the Pod Security Standard `restricted`, rule by rule, at the level that the strictest checkers ask for
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for context in (pod["securityContext"], container["securityContext"]):
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "secret", "persistentVolumeClaim", "emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)

    # and beyond it
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_pod_may_call_nobody() -> None:
    policy = _yaml(DOCKER / "kubernetes" / "networkpolicy.yaml")["spec"]

    assert policy["podSelector"] == {}
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])


def test_image_and_manifests_are_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "server" / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    texts = [(DOCKER / "Dockerfile"), (DOCKER / "compose.yaml"), (DOCKER / "kubernetes" / "deployment.yaml")]

    found = [
        tag
        for path in texts
        for tag in re.findall(r"(?:pericard:|ARG VERSION=|kubernetes.io/version: )(\d+\.\d+\.\d+)", path.read_text())
    ]

    assert len(found) == 6
    assert set(found) == {version[1]}
