"""The models by name, and what the edge may know of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import serving

from pericard.engine.repository import Remark, Repository
from pericard.errors import (
    KnownAnswerMismatch,
    LicenceExpired,
    LicenceNotYetValid,
    ModelNotReady,
    UnknownModel,
)
from pericard.runtime.loader import LoadedModel
from pericard.trust import Licence

NOT_AFTER = 1_800_000_000  # 2027-01-15T08:00:00Z


@pytest.fixture
def repository(tiny_model: LoadedModel) -> Repository:
    made = Repository(runtime="ab" * 32)
    made.add(made.make([tiny_model]))
    return made


def entry_of(repository: Repository, now: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = repository.catalog(now)["models"]["ecg-anomaly"]["versions"]["1"]
    return found


def test_a_version_is_found_by_its_number_and_no_other(repository: Repository, tiny_model: LoadedModel) -> None:
    (served,) = repository
    assert repository.find(served.number) is served
    assert (served.models, served.number, len(repository)) == ((tiny_model,), 1, 1)
    for number in (0, 2, -1, 1 << 31):
        with pytest.raises(UnknownModel):
            repository.find(number)


def test_a_number_is_never_used_again(repository: Repository, tiny_model: LoadedModel) -> None:
    (first,) = repository
    repository.retire(first)
    assert repository.find(first.number) is first  # what was asked already is still answered
    assert (len(repository), repository.catalog()["models"]) == (0, {})
    repository.remove(first)
    repository.add(repository.make([tiny_model]))
    assert [served.number for served in repository] == [2]
    with pytest.raises(UnknownModel):
        repository.find(first.number)


def test_the_generation_grows_with_every_change_and_only_then(repository: Repository, tiny_model: LoadedModel) -> None:
    (served,) = repository
    now = served.licence.grant.not_after
    seen = [repository.catalog(now)["generation"], repository.catalog(now)["generation"]]
    assert seen[0] == seen[1] == repository.generation
    repository.set_fault(served, KnownAnswerMismatch("model: for this test"))
    seen.append(repository.catalog(now)["generation"])
    repository.set_fault(served, None)
    seen.append(repository.catalog(now)["generation"])
    repository.remark([Remark("other", "2", "UNAVAILABLE", "broken")])
    repository.remark([Remark("other", "2", "UNAVAILABLE", "broken")])
    seen.append(repository.catalog(now)["generation"])
    seen.append(repository.catalog(now + 10 * 365 * serving.DAY)["generation"])  # the licence ended by itself
    assert seen[1:] == list(range(seen[1], seen[1] + 5))


def test_a_faulty_version_is_not_asked(repository: Repository) -> None:
    (served,) = repository
    repository.set_fault(served, KnownAnswerMismatch("model ecg-anomaly: off by 3"))
    with pytest.raises(ModelNotReady, match="known-answer-mismatch"):
        repository.find(served.number)
    entry = entry_of(repository)
    assert (entry["ready"], entry["reason"]) == (False, "model ecg-anomaly: off by 3")
    (listed,) = repository.index()
    assert (listed["state"], listed["reason"]) == ("UNAVAILABLE", "model ecg-anomaly: off by 3")


def test_the_catalog_is_what_the_interface_says(repository: Repository, tiny_model: LoadedModel) -> None:
    catalog = json.loads(json.dumps(repository.catalog()))

    assert catalog["runtime"] == "ab" * 32
    ((name, model),) = catalog["models"].items()
    assert (name, model["current"]) == ("ecg-anomaly", "1")
    entry = model["versions"]["1"]
    assert (entry["number"], entry["ready"], entry["reason"], entry["buckets"]) == (1, True, None, [1, 4, 8])
    assert entry["identity"] == {
        "name": "ecg-anomaly", "version": "1.0.0", "sequence": 1, "manifest": tiny_model.manifest_hash,
        "publisher": tiny_model.publisher,
    }  # fmt: skip
    assert entry["inputs"] == [{"name": "ecg", "dtype": "float32", "datatype": "FP32", "shape": [-1, 1, 8]}]
    assert [output["name"] for output in entry["outputs"]] == ["score", "timeline"]
    assert (entry["outputs"][0]["threshold"], entry["outputs"][1]["frame_seconds"]) == (0.9, 0.016)
    assert entry["signal"] == {"sampling_rate": 250.0, "unit": "mV", "leads": [["II", "MLII"]]}
    assert entry["licence"] == "valid"


def test_the_catalog_tells_no_weight_tensor_or_path(repository: Repository, tiny_sealed: Path) -> None:
    text = json.dumps(repository.catalog())

    for secret in ("gain", "weight", "embedding", tiny_sealed.name, str(tiny_sealed.parent)):
        assert secret not in text


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (NOT_AFTER, "valid"),
        (NOT_AFTER + 1, "grace"),
        (NOT_AFTER + 2 * serving.DAY, "grace"),
        (NOT_AFTER + 2 * serving.DAY + 1, "licence-expired"),
        (NOT_AFTER - 10 * serving.DAY, "licence-not-yet-valid"),
    ],
)
def test_the_licence_at_a_time(repository: Repository, tiny_model: LoadedModel, now: int, state: str) -> None:
    grant = dataclasses.replace(
        tiny_model.licence.grant, not_before=NOT_AFTER - serving.DAY, not_after=NOT_AFTER, grace_days=2
    )
    (served,) = repository
    served.licence = Licence(grant)

    entry = entry_of(repository, now)
    assert (entry["licence"], entry["licence_not_after"]) == (state, "2027-01-15T08:00:00Z")
    if state in {"valid", "grace"}:
        assert repository.state_of_licence(served, now) == state
    else:
        with pytest.raises((LicenceExpired, LicenceNotYetValid)) as error:
            repository.state_of_licence(served, now)
        assert error.value.code == state


def test_a_grant_without_an_end_has_a_date_that_can_be_written(repository: Repository, tiny_model: LoadedModel) -> None:
    grant = dataclasses.replace(tiny_model.licence.grant, not_after=(1 << 40) - 1)
    (served,) = repository
    served.licence = Licence(grant)

    assert entry_of(repository)["licence_not_after"] == "9999-12-31T23:59:59Z"


def test_closing_zeroes_the_weights(site: serving.Site, tiny_sealed: Path) -> None:
    repository = Repository(runtime="ab" * 32)
    model = site.load(tiny_sealed)
    served = repository.make([model])
    repository.add(served)
    weights = model._plaintext._memory.view
    assert any(weights)

    repository.close()

    assert len(repository) == 0
    assert not any(weights)
    with pytest.raises(UnknownModel):
        repository.find(served.number)


def test_a_clock_turned_back_does_not_bring_a_licence_back(tiny_model: LoadedModel) -> None:
    end = tiny_model.licence.grant.not_after + tiny_model.licence.grant.grace_days * 86400
    repository = Repository(runtime="r", licence_time=lambda now: max(now, end + 1))
    served = repository.make([tiny_model])
    with pytest.raises(LicenceExpired):
        repository.state_of_licence(served, tiny_model.licence.grant.not_before)
