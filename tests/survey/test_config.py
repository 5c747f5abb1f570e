"""The configuration: round trips, and refusals that name the value."""

from __future__ import annotations

import json

import pytest

from thalweg.survey import SurveyConfig


def test_round_trip_through_json_text() -> None:
    config = SurveyConfig(seed=7, minima=3, lr=3e-3, tolerance=1e-8)
    assert SurveyConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_what_is_left_out_has_its_default() -> None:
    assert SurveyConfig.from_json({"minima": 2}) == SurveyConfig(minima=2)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("minima", -1, "minima must be at least 0, got -1"),
        ("threads", 0, "threads must be at least 1, got 0"),
        ("searches_per_minimum", 0, "searches_per_minimum must be at least 1, got 0"),
        ("repeats", 0, "repeats must be at least 1, got 0"),
        ("levels", -1, "levels must be at least 0, got -1"),
        ("places", -1, "places must be at least 0, got -1"),
        ("places", 1, "places must be 0 or at least 2, the ends, got 1"),
        ("path_method", "beads", "unknown path_method 'beads'; use one of auto, line, string"),
        ("trace_samples", 4, "trace_samples must be 0 or at least 32, got 4"),
        ("curvature_probes", -1, "curvature_probes must be at least 0, got -1"),
        ("curvature_passes", 19, "curvature_passes must be at least 20, got 19"),
        ("curvature_probes", 3, "curvature_probes must be 0 or at least 4, got 3"),
        ("lr", 0.0, "lr must be positive and finite, got 0.0"),
        ("tolerance", float("nan"), "tolerance must be positive and finite, got nan"),
        ("seed", 2**63, "seed must lie in"),
    ],
)
def test_values_out_of_range_are_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("[", r"\[")):
        SurveyConfig.from_json({option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("minima", 2.0),
        ("epochs", True),
        ("lr", "1e-3"),
        ("layers", 1),
        ("curvature_probes", False),
        ("path_method", 3),
    ],
)
def test_values_of_the_wrong_type_are_refused(option: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{option} must be .* not {value!r}"):
        SurveyConfig.from_json({option: value})


def test_a_configuration_of_an_older_version_has_the_new_options_defaults() -> None:
    old = SurveyConfig(seed=3).to_json()
    for option in ("curvature_probes", "curvature_passes", "layers"):
        del old[option]
    assert SurveyConfig.from_json(old) == SurveyConfig(seed=3)
    assert SurveyConfig.from_json({"layers": False}).layers is False


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="unknown survey option 'minimas'; did you mean 'minima'"):
        SurveyConfig.from_json({"minimas": 8})


def test_load_reads_a_file_and_explains_a_bad_one(tmp_path) -> None:
    path = tmp_path / "survey.json"
    path.write_text('{"minima": 4, "seed": 9}')
    assert SurveyConfig.load(path) == SurveyConfig(minima=4, seed=9)
    path.write_text("minima: 4")
    with pytest.raises(ValueError, match=r"survey\.json is not JSON"):
        SurveyConfig.load(path)
    path.write_text("[4]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        SurveyConfig.load(path)


def test_differences_leave_the_goal_free() -> None:
    assert SurveyConfig().differences(SurveyConfig(minima=9)) == []
    assert SurveyConfig().differences(SurveyConfig(seed=1, lr=0.5)) == [
        "seed: 0 there, 1 here",
        "lr: 0.01 there, 0.5 here",
    ]
