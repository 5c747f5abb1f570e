"""A curvature profile as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from thalweg.curvature.profile import CurvatureProfile
from thalweg.report import curvature, page, tables
from thalweg.report.frame import Figure
from thalweg.report.names import bracket, plain
from thalweg.survey.curvature import eigen_record, layer_records, spectrum_record

__all__ = ["render_profile", "write_profile"]

_MATRIX = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}


def render_profile(profile: CurvatureProfile, title: str) -> str:
    """Return a profile as one HTML page that needs no network.

    Args:
        profile: What was measured.
        title: What it was measured of, as text.
    """
    specs: dict[str, Figure] = {}
    matrix = _MATRIX.get(profile.kind, profile.kind)
    layers = layer_records(profile.layers)
    body = "\n".join(
        [
            _head(profile, title, matrix),
            page.section("In numbers", tables.table("", ["measure", "value"], _rows(profile))),
            page.spectra([("here", spectrum_record(profile))], profile.dim, specs, matrix=matrix),
            page.section(
                "Largest eigenvalues",
                page.figure(
                    "ranked",
                    curvature.ranked([("here", eigen_record(profile.eigenpairs))], of=""),
                    specs,
                    "The largest eigenvalues, with intervals from the residuals; open marks are "
                    "not converged.",
                    "medium",
                ),
            ),
            page.layers([("here", layers)], specs, matrix=matrix) if layers else "",
        ]
    )
    return page.document(f"{title} · Thalweg curvature", body, specs)


def write_profile(profile: CurvatureProfile, path: str | os.PathLike[str], title: str) -> Path:
    """Write a profile as an HTML file, which is replaced whole or left as it was.

    Args:
        profile: What was measured.
        path: The file; its folder must exist.
        title: What it was measured of, as text.

    Returns:
        The file's path.

    Raises:
        OSError: If it cannot be written; the message says why.
    """
    return page.save(render_profile(profile, title), path)


def _head(profile: CurvatureProfile, title: str, matrix: str) -> str:
    facts = [matrix, f"{profile.dim:,} parameters", str(profile.cost), f"seed {profile.seed}"]
    return page.header(title, facts)


def _rows(profile: CurvatureProfile) -> Sequence[Sequence[tuple[str, float | str]]]:
    """Return the numbers that have no table of their own."""
    return [
        [("loss", "loss"), (f"{profile.loss:.8g}", profile.loss)],
        [("gradient norm", "gradient norm"), (f"{profile.gradient_norm:.4g}", "")],
        [
            ("largest eigenvalue (sharpness)", "largest"),
            (bracket(profile.largest.lower, profile.largest.upper), profile.largest.lower),
        ],
        [
            ("smallest eigenvalue", "smallest"),
            (bracket(profile.lowest.lower, profile.lowest.upper), profile.lowest.lower),
        ],
        [("trace", "trace"), (plain(profile.trace), profile.trace.value)],
    ]
