"""The conda recipe renders, and says what both pyproject.toml files say; so do the environment files and the pins.

Rendering uses the engine that builds packages. Nothing is built or installed here.
"""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler_build import Stage0Recipe, VariantConfig

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"pericard-server": "server", "pericard-client": "client"}
ENVIRONMENTS = ["environment.yml", "environment-gpu.yml", "environment-research.yml"]
CEP_24_KEYS = {"name", "channels", "platforms", "dependencies", "variables"}

# where conda-forge's name is not PyPI's
CONDA_NAMES = {
    "torch": "pytorch",
    "fastapi": "fastapi-core",
    "prometheus-client": "prometheus_client",
    "matplotlib": "matplotlib-base",
}
PYPI_NAMES = {conda: pypi for pypi, conda in CONDA_NAMES.items()} | {"pytorch-cpu": "torch", "pytorch-gpu": "torch"}


def _project(distribution: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / DISTRIBUTIONS[distribution] / "pyproject.toml").read_text())
    return project["project"]


def _requirements(distribution: str) -> dict[str, SpecifierSet]:
    """What a distribution needs to run, by canonical PyPI name."""
    return {
        canonicalize_name(parsed.name): parsed.specifier
        for parsed in map(Requirement, _project(distribution)["dependencies"])
    }


def _extra(distribution: str, name: str) -> dict[str, SpecifierSet]:
    wanted = map(Requirement, _project(distribution).get("optional-dependencies", {}).get(name, []))
    return {canonicalize_name(parsed.name): parsed.specifier for parsed in wanted}


@cache
def _rendered() -> dict[str, dict[str, Any]]:
    """Every output of the recipe, as the builder sees it, by package name."""
    recipe = Stage0Recipe.from_file(ROOT / "conda-recipe" / "recipe.yaml")
    variants = recipe.render(VariantConfig.from_file(ROOT / "conda-recipe" / "variants.yaml"))
    outputs = [variant.recipe.to_dict() for variant in variants]
    return {output["package"]["name"]: output for output in outputs}


def _conda_specs(lines: list[str]) -> dict[str, SpecifierSet]:
    """``name spec`` lines as specifiers by PyPI name; ``3.11.*`` means ``==3.11.*``, as conda reads it."""
    specs = {}
    for line in lines:
        name, _, spec = line.partition(" ")
        name = canonicalize_name(PYPI_NAMES.get(name, name))
        specs[name] = SpecifierSet(spec if not spec[:1].isdigit() else f"=={spec}")
    return specs


def _pins(name: str) -> dict[str, Version]:
    """The pins of one constraints file, without those that it takes over from another."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pins: dict[str, Version] = {}
    for line in lines:
        if not line or line.startswith(("#", "-c ")):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"{name}: {line!r} is not an exact pin"
        key = canonicalize_name(match[1])
        assert key not in pins, f"{name}: {key} is pinned twice"
        pins[key] = Version(match[2])
    return pins


def _environment(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


# --- the recipe


def test_three_outputs_of_the_same_version() -> None:
    versions = {name: output["package"]["version"] for name, output in _rendered().items()}

    assert versions == {
        "pericard-client": _project("pericard-client")["version"],
        "pericard-server": _project("pericard-server")["version"],
        "pericard": _project("pericard-server")["version"],
    }


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_output_needs_what_its_project_needs(distribution: str) -> None:
    output = _rendered()[distribution]
    run = [line for line in output["requirements"]["run"] if not line.startswith(("python ", "__"))]

    assert _conda_specs(run) == _requirements(distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_output_is_built_as_its_project_says(distribution: str) -> None:
    output = _rendered()[distribution]
    scripts = [f"{name} = {target}" for name, target in _project(distribution)["scripts"].items()]

    assert output["build"]["noarch"] == "python"
    assert output["build"]["python"]["entry_points"] == scripts
    floor = output["requirements"]["run"][0]
    assert SpecifierSet(floor.removeprefix("python ")) == SpecifierSet(_project(distribution)["requires-python"])


def test_the_extras_are_constraints_only() -> None:
    constraints = _rendered()["pericard-client"]["requirements"]["run_constraints"]

    assert _conda_specs(constraints) == _extra("pericard-client", "plot") | _extra("pericard-client", "verify")


def test_only_the_server_is_bound_to_linux() -> None:
    bound = {name for name, output in _rendered().items() if "__linux" in output["requirements"]["run"]}

    assert bound == {"pericard-server"}


def test_the_metapackage_pins_both_exactly() -> None:
    run = _rendered()["pericard"]["requirements"]["run"]

    assert run == [{"pin_subpackage": {"name": name, "exact": True}} for name in DISTRIBUTIONS]


def test_every_file_that_the_recipe_names_is_there() -> None:
    for output in _rendered().values():
        for license_file in output["about"]["license_file"]:
            assert (ROOT / license_file).is_file()
        for test in output["tests"]:
            for file in test.get("files", {}).get("recipe", []):
                assert (ROOT / "conda-recipe" / file).is_file()


def test_the_smoke_test_holds_in_this_environment_and_only_for_this_version() -> None:
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    smoke = [sys.executable, ROOT / "conda-recipe" / "smoke.py"]
    runs = [
        subprocess.run(
            [*smoke, version],
            env={**os.environ, "PATH": commands},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        for version in (_project("pericard-server")["version"], "99.0")
    ]

    assert [run.returncode for run in runs] == [0, 1], runs[0].stderr
    assert "not 99.0" in runs[1].stderr


# --- the environment files


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_uses_the_official_channel_alone(name: str) -> None:
    environment = _environment(name)

    assert set(environment) <= CEP_24_KEYS
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert environment["variables"] == {"PYTHONNOUSERSITE": "1"}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_asks_for_the_series_that_was_tested(name: str) -> None:
    specs = _conda_specs(_environment(name)["dependencies"])
    pins = _pins("runtime.txt") | _pins("dev.txt")

    assert specs.pop("pericard") == SpecifierSet(f"=={_project('pericard-server')['version']}")
    assert specs.pop("python") == SpecifierSet("==3.11.*")
    specs.pop("jupyterlab", None)  # a workplace's own; nothing here runs on it
    loose = {dependency for dependency, spec in specs.items() if not str(spec).startswith("==")}
    untested = {dependency for dependency, spec in specs.items() if pins.get(dependency) not in spec}
    assert (loose, untested) == (set(), set())


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_names_every_runtime_dependency(name: str) -> None:
    specs = _conda_specs(_environment(name)["dependencies"])
    wanted = _requirements("pericard-server") | _requirements("pericard-client")

    assert set(wanted) - set(specs) == set()


def test_the_environments_differ_only_where_they_should() -> None:
    cpu, gpu, research = (set(_environment(name)["dependencies"]) for name in ENVIRONMENTS)

    assert cpu - gpu == {"pytorch-cpu 2.13.*"}
    assert gpu - cpu == {"pytorch-gpu 2.13.*"}
    assert cpu < research


# --- the pins


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_dependency_is_pinned_within_its_range(distribution: str) -> None:
    pins = _pins("runtime.txt")
    wanted = _requirements(distribution) | _extra(distribution, "plot") | _extra(distribution, "verify")

    assert {name for name in wanted if name not in pins} == set()
    assert {name for name, spec in wanted.items() if pins[name] not in spec} == set()


def test_every_tool_is_pinned() -> None:
    lines = (ROOT / "constraints" / "tools.txt").read_text().splitlines()
    tools = {canonicalize_name(line.partition("#")[0].strip()) for line in lines if line and not line.startswith("#")}

    assert tools
    assert tools - set(_pins("dev.txt")) == set()


def test_no_pin_stands_in_both_files() -> None:
    assert set(_pins("runtime.txt")) & set(_pins("dev.txt")) == set()


def test_the_environment_that_runs_this_holds_the_pins() -> None:
    pins = _pins("runtime.txt") | _pins("dev.txt")
    installed = {canonicalize_name(found.name): Version(Version(found.version).public) for found in distributions()}
    for distribution in DISTRIBUTIONS:
        installed.pop(distribution)

    assert {name: version for name, version in installed.items() if pins.get(name, version) != version} == {}
    if os.environ.get("CI") == "true":  # a developer's environment may hold more
        assert set(installed) == set(pins)
