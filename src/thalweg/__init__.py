"""Thalweg: survey the loss landscape of a neural network.

The public names live here, and are imported when they are first used, so that
``import thalweg`` costs milliseconds and ``thalweg --help`` answers at once.

Example:
    >>> import thalweg as tw
    >>> print(tw.Estimate(2.658, 0.0035, (2.651, 2.665), samples=96))
    2.6580 ± 0.0070 (95 %)
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg import theory as theory
    from thalweg import zoo as zoo
    from thalweg.curvature import Fisher as Fisher
    from thalweg.curvature import GaussNewton as GaussNewton
    from thalweg.curvature import GradientMoment as GradientMoment
    from thalweg.curvature import Hessian as Hessian
    from thalweg.curvature import Tracker as Tracker
    from thalweg.curvature import curvature_at_scale as curvature_at_scale
    from thalweg.curvature import curvature_profile as curvature_profile
    from thalweg.curvature import diagonal as diagonal
    from thalweg.curvature import effective_dimension as effective_dimension
    from thalweg.curvature import eigenpairs as eigenpairs
    from thalweg.curvature import explain_spike as explain_spike
    from thalweg.curvature import frobenius_norm as frobenius_norm
    from thalweg.curvature import gradient_noise_scale as gradient_noise_scale
    from thalweg.curvature import inertia as inertia
    from thalweg.curvature import largest_stable_step as largest_stable_step
    from thalweg.curvature import layer_curvature as layer_curvature
    from thalweg.curvature import log_determinant as log_determinant
    from thalweg.curvature import minibatch_sharpness as minibatch_sharpness
    from thalweg.curvature import nearest_zero as nearest_zero
    from thalweg.curvature import optimiser_sharpness as optimiser_sharpness
    from thalweg.curvature import spectral_density as spectral_density
    from thalweg.curvature import trace as trace
    from thalweg.curvature import track as track
    from thalweg.estimate import Bound as Bound
    from thalweg.estimate import Cost as Cost
    from thalweg.estimate import Estimate as Estimate
    from thalweg.estimate import Verdict as Verdict
    from thalweg.landscape import FunctionLandscape as FunctionLandscape
    from thalweg.landscape import Landscape as Landscape
    from thalweg.landscape import ModelLandscape as ModelLandscape
    from thalweg.landscape import ParameterSpec as ParameterSpec
    from thalweg.optim import minimise as minimise
    from thalweg.paths import Path as Path
    from thalweg.paths import along as along
    from thalweg.paths import band as band
    from thalweg.paths import barrier_definitions as barrier_definitions
    from thalweg.paths import connect as connect
    from thalweg.paths import critical_point as critical_point
    from thalweg.paths import curve as curve
    from thalweg.paths import dynamic_string as dynamic_string
    from thalweg.paths import height_sampling as height_sampling
    from thalweg.paths import in_gauge as in_gauge
    from thalweg.paths import is_connected as is_connected
    from thalweg.paths import level_set_geometry as level_set_geometry
    from thalweg.paths import level_sets_through_training as level_sets_through_training
    from thalweg.paths import line as line
    from thalweg.paths import passes_from as passes_from
    from thalweg.paths import refine as refine
    from thalweg.paths import shorten as shorten
    from thalweg.paths import simplex as simplex
    from thalweg.paths import string as string
    from thalweg.report import plot as plot
    from thalweg.survey import Survey as Survey
    from thalweg.survey import SurveyConfig as SurveyConfig
    from thalweg.topology import MergeTree as MergeTree
    from thalweg.topology import barcode as barcode
    from thalweg.topology import basin_statement as basin_statement
    from thalweg.topology import best_known_tree as best_known_tree
    from thalweg.topology import certified_tree as certified_tree
    from thalweg.topology import grid_merge_tree as grid_merge_tree
    from thalweg.topology import merge_tree as merge_tree

__version__ = "0.1.0"

_ROOMS: dict[str, tuple[str, ...]] = {
    "curvature": (
        "Fisher",
        "GaussNewton",
        "GradientMoment",
        "Hessian",
        "Tracker",
        "curvature_at_scale",
        "curvature_profile",
        "diagonal",
        "effective_dimension",
        "eigenpairs",
        "explain_spike",
        "frobenius_norm",
        "gradient_noise_scale",
        "inertia",
        "largest_stable_step",
        "layer_curvature",
        "log_determinant",
        "minibatch_sharpness",
        "nearest_zero",
        "optimiser_sharpness",
        "spectral_density",
        "trace",
        "track",
    ),
    "estimate": ("Bound", "Cost", "Estimate", "Verdict"),
    "landscape": ("FunctionLandscape", "Landscape", "ModelLandscape", "ParameterSpec"),
    "optim": ("minimise",),
    "paths": (
        "Path",
        "along",
        "band",
        "barrier_definitions",
        "connect",
        "critical_point",
        "curve",
        "dynamic_string",
        "height_sampling",
        "in_gauge",
        "is_connected",
        "level_set_geometry",
        "level_sets_through_training",
        "line",
        "passes_from",
        "refine",
        "shorten",
        "simplex",
        "string",
    ),
    "report": ("plot",),
    "survey": ("Survey", "SurveyConfig"),
    "topology": (
        "MergeTree",
        "barcode",
        "basin_statement",
        "best_known_tree",
        "certified_tree",
        "grid_merge_tree",
        "merge_tree",
    ),
    "theory": (),
    "zoo": (),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", "theory", "zoo", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"thalweg.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"thalweg.{name}")
    else:
        close = difflib.get_close_matches(name, [*_HOME, *_ROOMS], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}{hint}", name=name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *_HOME, *_ROOMS})
