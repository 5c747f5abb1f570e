"""What the signs of the eigenvalues say in words: minimum, saddle or undecided, up to tau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.estimate import Estimate
from thalweg.report.names import BELOW, count, listing, span
from thalweg.survey.records import SpectrumRecord

__all__ = ["Signs", "how_many", "index", "signs"]

_ROUNDING = 1e-9
_NAMED = 6


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of the number of eigenvalues below -tau.

    Args:
        certain: How many there are at least, as a proof.
        least: How many there are at least, as an estimate.
        most: How many there are at most, as an estimate; infinite where nothing bounds them.
    """

    certain: int
    least: int
    most: float

    @property
    def minimum(self) -> bool:
        """Whether there is room for none."""
        return self.most == 0

    @property
    def saddle(self) -> bool:
        """Whether there is one at least."""
        return self.least > 0


def signs(spectrum: SpectrumRecord) -> Signs | None:
    """Read a spectrum's count of eigenvalues below -tau; None if it is not a number."""
    ends = _whole(spectrum.negative)
    if ends is None:
        return None
    certain = spectrum.certified[0]
    return Signs(certain, max(certain, ends[0]), max(certain, ends[1]))


def _whole(number: Estimate) -> tuple[int, float] | None:
    """Return the whole numbers that the interval of a count leaves."""
    low, high = number.interval
    if math.isnan(low) or math.isnan(high):
        return None
    least = max(0, math.ceil(low - _ROUNDING)) if math.isfinite(low) else 0
    most = math.floor(high + _ROUNDING) if math.isfinite(high) else math.inf
    return least, max(least, most)


def how_many(number: Estimate) -> str:
    """Return an estimate of a count, with the whole numbers that its interval leaves.

    Example:
        >>> how_many(Estimate(3.2, 1.0, (2.0, 7.4), 8))
        '3.2 (2 to 7)'
        >>> how_many(Estimate(3.0, 0.0, (3.0, 3.0), 8))
        '3'
    """
    ends = _whole(number)
    if ends is None or math.isnan(number.value):
        return "not a number"
    least, most = ends
    if least == most:
        return f"{least}"
    return f"{number.value:.4g} ({least} {'or more' if math.isinf(most) else f'to {most:.0f}'})"


def index(known: Sequence[tuple[str, SpectrumRecord, bool]], dim: int) -> str:
    """Return a paragraph: which of some points are minima, up to tau.

    Args:
        known: Names, spectra, and whether the search for a minimum ended there.
        dim: The number of eigenvalues.

    Returns:
        The paragraph; nothing where no spectrum says anything.
    """
    read = [(name, s, done, said) for name, s, done in known if (said := signs(s)) is not None]
    if not read:
        return ""
    parts = [
        _minima([name for name, *_, said in read if said.minimum], len(read)),
        *_saddles([(name, done, said) for name, _, done, said in read if said.saddle]),
        _undecided(
            [(name, s, said) for name, s, _, said in read if not (said.minimum or said.saddle)]
        ),
        _near_zero([spectrum for _, spectrum, *_ in read], dim),
    ]
    return " ".join(filter(None, parts))


def _minima(names: Sequence[str], known: int) -> str:
    if not names:
        return ""
    whole = len(names) == known > 1
    who = f"All {known}" if whole else listing(names, _NAMED)
    are = f"{who} is a minimum" if len(names) == 1 else f"{who} are minima"
    return (
        f"{are} up to τ: no eigenvalue {BELOW} was found, and the brackets on their number leave "
        "room for none. That is an estimate, not a proof."
    )


def _saddles(found: Sequence[tuple[str, bool, Signs]]) -> list[str]:
    texts = []
    for name, converged, said in found[:_NAMED]:
        what = (
            "so it is a saddle as far as τ tells, not a minimum"
            if converged
            else "but the gradient there is not yet zero, so it is no saddle either"
        )
        proof = (
            f" ({said.certain} for certain)"
            if 0 < said.certain < said.most
            else ""
            if said.certain
            else " (an estimate, not a proof)"
        )
        text = f"{name} has {_directions(said)} of negative curvature {BELOW}{proof}, {what}."
        texts.append(text)
    if len(found) > _NAMED:
        rest = [name for name, *_ in found[_NAMED:]]
        texts.append(f"So {'has' if len(rest) == 1 else 'have'} {listing(rest)}.")
    return texts


def _directions(said: Signs) -> str:
    if said.least == said.most:
        return count(said.least, "direction")
    if math.isinf(said.most):
        return f"{said.least} or more directions"
    return f"{said.least} to {said.most:.0f} directions"


def _undecided(found: Sequence[tuple[str, SpectrumRecord, Signs]]) -> str:
    if not found:
        return ""
    names = [name for name, *_ in found]
    most = max(said.most for *_, said in found)
    reach = "any number" if math.isinf(most) else f"up to {most:.0f}"
    lowest = [s.lowest.upper for _, s, _ in found if math.isfinite(s.lowest.upper)]
    seen = f" (the smallest seen is {span(lowest)})" if lowest else ""
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{listing(names, _NAMED)} {verb} undecided: no eigenvalue {BELOW} was found{seen}, but "
        f"the brackets on their number leave room for {reach}."
    )


def _near_zero(spectra: Sequence[SpectrumRecord], dim: int) -> str:
    taus = span(spectrum.tau for spectrum in spectra)
    counts = [ends for s in spectra if (ends := _whole(s.zero)) is not None]
    said = f"Here τ = {taus}."
    if not counts:
        return said
    least, most = min(low for low, _ in counts), max(high for _, high in counts)
    if most == 0:
        return f"{said} No eigenvalue lies within τ of zero, so the index does not depend on τ."
    some = f"{least}" if least == most else f"between {least} and {min(most, dim):.0f}"
    return (
        f"{said} Of the {dim:,} eigenvalues {some} lie within τ of zero, and their signs are left "
        "open: with so many there is no index without a τ."
    )
