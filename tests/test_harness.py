"""The tests' own tools must reject what they are there to reject."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import thalweg
from thalweg.landscape import ParameterSpec


@pytest.fixture
def harness(request):
    """The module of tests/conftest.py."""
    here = str(Path(__file__).with_name("conftest.py"))
    return next(
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == here
    )


def test_tests_run_on_one_thread():
    assert torch.get_num_threads() == 1


def test_the_generator_is_fresh_and_seeded(generator):
    again = torch.Generator().manual_seed(generator.initial_seed())
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=again))


def test_a_wrong_dtype_is_rejected_while_the_tests_run():
    spec = ParameterSpec({"a": (2,)})
    with pytest.raises(jaxtyping.TypeCheckError, match="theta"):
        spec.layer_norms(torch.zeros(2, dtype=torch.int64))
    assert spec.layer_norms(torch.ones(5, 2)).shape == (5, 1)


@pytest.mark.usefixtures("unchecked")
def test_the_check_can_be_switched_off_to_meet_the_library_s_own_error():
    with pytest.raises(AttributeError):
        ParameterSpec({"a": (2,)}).layer_norms("nonsense")


def test_a_wrong_shape_annotation_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "wrong_shapes.py").write_text(
        "from __future__ import annotations\n"
        "from typing import Self\n"
        "from jaxtyping import Float\n"
        "from torch import Tensor\n"
        "def keep(x: Float[Tensor, 'm n'], rate: float) -> Float[Tensor, 'n m']:\n"
        "    return x\n"
        "class Chain:\n"
        "    def next(self) -> Self:\n"
        "        return self\n"
    )
    monkeypatch.setattr(thalweg, "__path__", [*thalweg.__path__, str(tmp_path)])
    module = importlib.import_module("thalweg.wrong_shapes")
    assert module.keep(torch.zeros(2, 2), 1).shape == (2, 2)  # an int will do for a float
    assert isinstance(module.Chain().next(), module.Chain)
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        module.keep(torch.zeros(2, 3), 1.0)


def test_the_calibration_rule(harness):
    rows = []
    rule = harness.Calibration(range(1000), lambda name, value: rows.append(value))
    rule.check("just honest", 923, width_ratio=1.5)
    with pytest.raises(AssertionError, match=r"922 of 1000 seeds; an honest one .* at least 923"):
        rule.check("too narrow", 922)
    with pytest.raises(AssertionError, match=r"2\.5 times as wide"):
        rule.check("too wide", 1000, width_ratio=2.5)
    with pytest.raises(AssertionError, match="1001 hits"):
        rule.check("miscounted", 1001)
    assert [row[0] for row in rows] == ["just honest", "too narrow", "too wide", "miscounted"]
    assert "| just honest | 0.95 | 923 of 1000 | 923 | 1.5 |" in harness._table(rows)


def test_the_number_of_seeds_comes_from_the_environment(calibration):
    assert len(calibration.seeds) == int(os.environ.get("THALWEG_CALIBRATE", "100"))


def test_what_is_missing_skips_here_and_fails_in_ci(harness, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no sextant"):
        harness.missing("no sextant")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"no sextant; \.ci/run should have"):
        harness.missing("no sextant")


def test_scripts_are_imported_by_their_own_names_and_progress_can_be_interrupted(scripts, ctrl_c):
    enter = scripts("examples/spin_glass_counts")
    assert Path(enter("tables").__file__).parent.name == "spin_glass_counts"
    assert "tables" in sys.modules
    assert Path(scripts("examples/level_sets")("tables").__file__).parent.name == "level_sets"
    press = ctrl_c(2, says="step")
    press(0.5, "step 1")
    with pytest.raises(KeyboardInterrupt):
        press(1.0, "step 2")
    for wrong in ((1.5, "step 3"), (0.5, ""), (0.5, "other words")):
        with pytest.raises(AssertionError):
            press(*wrong)


def test_scripts_are_forgotten():
    assert "tables" not in sys.modules  # the test above imported it
