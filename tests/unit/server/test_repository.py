"""The models by name, and what the edge may know of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import serving

from pericard.engine.repository import Repository
from pericard.errors import LicenceExpired, LicenceNotYetValid, UnknownModel, UnsupportedModel
from pericard.runtime.loader import LoadedModel
from pericard.trust import Licence

NOT_AFTER = 1_800_000_000  # 2027-01-15T08:00:00Z


@pytest.fixture
def repository(tiny_model: LoadedModel) -> Repository:
    made = Repository(runtime="ab" * 32)
    made.add(tiny_model)
    return made


def test_a_model_is_found_by_its_name_and_no_other(repository: Repository, tiny_model: LoadedModel) -> None:
    assert repository.get("ecg-anomaly") is tiny_model
    assert (list(repository), len(repository)) == ([tiny_model], 1)
    for name in ("", "ecg", "ECG-ANOMALY", "../ecg-anomaly", "ecg-anomaly.sealed"):
        with pytest.raises(UnknownModel):
            repository.get(name)


def test_two_models_of_one_name_are_refused(repository: Repository, tiny_model: LoadedModel) -> None:
    with pytest.raises(UnsupportedModel, match="two sealed files"):
        repository.add(tiny_model)
    assert len(repository) == 1


def test_the_catalog_is_what_the_interface_says(repository: Repository, tiny_model: LoadedModel) -> None:
    catalog = json.loads(json.dumps(repository.catalog()))

    assert catalog["runtime"] == "ab" * 32
    (entry,) = catalog["models"].values()
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
def test_the_licence_at_a_time(
    repository: Repository, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, now: int, state: str
) -> None:
    grant = dataclasses.replace(
        tiny_model.licence.grant, not_before=NOT_AFTER - serving.DAY, not_after=NOT_AFTER, grace_days=2
    )
    monkeypatch.setattr(tiny_model, "licence", Licence(grant))

    entry = repository.catalog(now)["models"]["ecg-anomaly"]
    assert (entry["licence"], entry["licence_not_after"]) == (state, "2027-01-15T08:00:00Z")
    if state in {"valid", "grace"}:
        assert repository.licence(tiny_model, now) == state
    else:
        with pytest.raises((LicenceExpired, LicenceNotYetValid)) as error:
            repository.licence(tiny_model, now)
        assert error.value.code == state


def test_a_grant_without_an_end_has_a_date_that_can_be_written(
    repository: Repository, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = dataclasses.replace(tiny_model.licence.grant, not_after=(1 << 40) - 1)
    monkeypatch.setattr(tiny_model, "licence", Licence(grant))

    assert repository.catalog()["models"]["ecg-anomaly"]["licence_not_after"] == "9999-12-31T23:59:59Z"


def test_closing_zeroes_the_weights(site: serving.Site, tiny_sealed: Path) -> None:
    repository = Repository(runtime="ab" * 32)
    model = site.load(tiny_sealed)
    repository.add(model)
    weights = model._plaintext._memory.view
    assert any(weights)

    repository.close()

    assert len(repository) == 0
    assert not any(weights)
    with pytest.raises(UnknownModel):
        repository.get("ecg-anomaly")


def test_a_clock_turned_back_does_not_bring_a_licence_back(tiny_model: LoadedModel) -> None:
    end = tiny_model.licence.grant.not_after + tiny_model.licence.grant.grace_days * 86400
    repository = Repository(runtime="r", licence_time=lambda now: max(now, end + 1))
    repository.add(tiny_model)
    with pytest.raises(LicenceExpired):
        repository.licence(tiny_model, tiny_model.licence.grant.not_before)
