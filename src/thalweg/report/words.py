"""The survey's answers in words, with their numbers and what is left undecided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.estimate import Bound
from thalweg.report.index import index
from thalweg.report.names import bracket, count, labels, listing, plain, span, top_eigenvalue
from thalweg.survey.records import MinimumRecord, SurveyRecord

__all__ = ["Answers", "Pass", "answers", "passes", "sampling_error"]

_SYMMETRY = (
    "Neither measure survives a rescaling of the weights that leaves the function as it is "
    "(Dinh et al., 2017)."
)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the report says in words: one paragraph per question, and the caveats."""

    basins: str
    passes: str
    flattest: str
    index: str
    caveats: tuple[str, ...]

    def __str__(self) -> str:
        """Return all paragraphs."""
        return "\n\n".join(
            filter(None, (self.basins, self.passes, self.flattest, self.index, *self.caveats))
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """A merge of the tree, read against the sampling error of the loss.

    Args:
        names: Labels of the surviving and the dying minimum.
        height: Bracket on the loss at the pass.
        barrier: The same above the higher of the two minima.
        noise: Half the interval of the loss at the two minima, the larger; None if unknown.
        proved: Whether a certified lower end puts the barrier above the noise.
    """

    names: tuple[str, str]
    height: Bound
    barrier: Bound
    noise: float | None
    proved: bool

    @property
    def low(self) -> bool:
        """Whether the barrier is no larger than the sampling error of the loss."""
        return self.barrier.upper <= (self.noise or 0.0)

    @property
    def straddles(self) -> bool:
        """Whether the bracket on the barrier holds the sampling error."""
        return self.barrier.lower <= (self.noise or 0.0) < self.barrier.upper


def sampling_error(minimum: MinimumRecord | None) -> float | None:
    """Return half the interval of the loss at a minimum, or None if it is not known."""
    if minimum is None or minimum.sampling is None:
        return None
    half = minimum.sampling.half_width
    return half if math.isfinite(half) else None


def passes(record: SurveyRecord) -> tuple[Pass, ...]:
    """Return the merges of the record's tree, from the lowest upwards."""
    if record.tree is None:
        return ()
    tree, names = record.tree, labels(record)
    minima = {minimum.id: minimum for minimum in record.minima}
    height = dict(zip(tree.leaves, tree.heights, strict=True))
    found = []
    for merge in tree.merges:
        pair = (merge.survivor, merge.dying)
        noises = [sampling_error(minima.get(str(leaf))) for leaf in pair]
        noise = max((x for x in noises if x is not None), default=None)
        proofs = [
            path.barrier.lower
            for path in record.paths
            if {path.a, path.b} == set(merge.edge) and path.barrier.lower_kind != "estimated"
        ]
        found.append(
            Pass(
                (names.get(str(pair[0]), str(pair[0])), names.get(str(pair[1]), str(pair[1]))),
                merge.height,
                merge.height.above(height[merge.dying]),
                noise,
                max(proofs, default=-math.inf) > (noise or 0.0),
            )
        )
    return tuple(found)


def answers(record: SurveyRecord) -> Answers:
    """Return what a survey says in words.

    Args:
        record: The survey.

    Returns:
        One paragraph for each of four questions: one basin or several, how high the
        passes are, which minimum is the flattest, which of them are minima; and the caveats.
    """
    found = passes(record)
    return Answers(
        _basins(record, found),
        _passes(record, found),
        _flattest(record),
        _index(record),
        _caveats(record),
    )


def _index(record: SurveyRecord) -> str:
    names = labels(record)
    known = [(names[m.id], m.spectrum, m.converged) for m in record.minima if m.spectrum]
    return index(known, record.dim)


def _basins(record: SurveyRecord, found: Sequence[Pass]) -> str:
    n = len(record.minima)
    minima = count(n, "minimum", "minima")
    if n == 0:
        return "No minimum has been found, so there is nothing to say about basins yet."
    if n == 1:
        return "One minimum has been found. Whether there are more basins takes at least two."
    if record.tree is None:
        return f"Undecided: {minima} were found, but no merge tree over them is recorded."
    if len(record.tree.leaves) < 2:
        only = "only 1" if record.tree.leaves else "none"
        return f"Undecided: {minima} were found, but the merge tree holds {only} of them."
    n = len(record.tree.leaves)
    minima = count(n, "minimum", "minima")
    roots = len(record.tree.roots)
    if roots > 1:
        loose = [" with ".join(_group(record, root)) for root in record.tree.roots]
        tried = (
            "no path was computed between any two"
            if not record.paths
            else ("no path that was computed joins them")
        )
        return (
            f"Undecided: the {minima} fall into {roots} groups ({listing(loose)}) and {tried}. "
            "That is no proof that they are apart."
        )
    low = sum(p.low for p in found)
    if low == len(found):
        return _one_basin(minima, found)
    return _several(record, found, n - low)


def _group(record: SurveyRecord, root: int) -> list[str]:
    names = labels(record)
    members = record.tree.members(root) if record.tree else ()
    return _short([names.get(str(leaf), str(leaf)) for leaf in members])


def _one_basin(minima: str, found: Sequence[Pass]) -> str:
    highest = max(p.barrier.upper for p in found)
    known = [p.noise for p in found if p.noise is not None]
    if highest <= 0:
        return (
            f"One basin: all {minima} are joined by paths along which the loss never rises "
            "above the higher end."
        )
    return (
        f"One basin, to within the sampling error: all {minima} are joined by paths that rise at "
        f"most {highest:.3g} above the higher end, no more than the sampling error of the loss "
        f"itself (± {span(known)}, 95 %)."
    )


def _several(record: SurveyRecord, found: Sequence[Pass], groups: int) -> str:
    high = [p for p in found if not p.low]
    top = found[-1]
    noise = "sampling error of the loss" if any(p.noise for p in found) else "higher end"
    joined = (
        f"All {len(found) + 1} minima lie in one piece of the sublevel set at loss "
        f"{top.height.upper:.4g} and above."
    )
    proved = sum(p.proved for p in high)
    if proved == len(high):
        return (
            f"Several basins: {groups} groups of minima are parted by passes above the {noise}, "
            f"each with a certified lower bound. {joined}"
        )
    apart = f"{groups} groups of minima ({_listed(record, found)})"
    doubt = (
        "None of these passes is proved to be needed, so a lower path may exist."
        if not proved
        else f"Only {proved} of these {count(len(high), 'pass', 'passes')} "
        f"{'is' if proved == 1 else 'are'} proved to be needed; a lower path may exist past "
        "the others."
    )
    straddling = sum(p.straddles for p in high)
    reach = (
        f" For {straddling} of them the bracket itself reaches down to the {noise}: unresolved."
        if straddling
        else ""
    )
    return (
        f"Several basins as far as the paths found can tell: {apart} are parted "
        f"by {count(len(high), 'pass', 'passes')} above the {noise}. {joined} {doubt}{reach}"
    )


def _listed(record: SurveyRecord, found: Sequence[Pass]) -> str:
    """Name the groups that the low passes make, each as "m0 with m1 with m2"."""
    group = {name: [name] for name in labels(record).values()}
    for each in found:
        one, other = (group[name] for name in each.names)
        if each.low and one is not other:
            one += other
            group.update(dict.fromkeys(other, one))
    distinct = {id(names): names for names in group.values()}
    return "; ".join(" with ".join(_short(names)) for names in list(distinct.values())[:6]) + (
        "; ..." if len(distinct) > 6 else ""
    )


def _short(names: Sequence[str]) -> list[str]:
    return [*names[:4], f"{len(names) - 4} more"] if len(names) > 4 else list(names)


def _passes(record: SurveyRecord, found: Sequence[Pass]) -> str:
    if len(record.minima) < 2:
        return ""
    if not found:
        return "No pass is known: no path joins two of the minima."
    top = max(found, key=lambda p: p.barrier.upper)
    text = [
        f"The {count(len(found), 'pass', 'passes')} found "
        f"{'stands' if len(found) == 1 else 'stand'} at a loss of "
        f"{span(p.height.upper for p in found)}. The one that stands highest above its minima lies "
        f"between {top.names[0]} and {top.names[1]}: the loss there is {top.height}, which is "
        f"{top.barrier} above the higher of the two."
    ]
    known = [p.noise for p in found if p.noise is not None]
    low = sum(p.low for p in found)
    if known:
        beside = _beside_noise(low, len(found))
        text.append(f"{beside} the sampling error of the loss (± {span(known)}, 95 %).")
    else:
        text.append("The record holds no sampling error of the loss to compare them with.")
    lines = [path.line_maximum.upper for path in record.paths]
    if lines:
        text.append(f"Straight lines between the same minima climb to {span(lines)}.")
    swaps = sum(not merge.resolved for merge in record.tree.merges) if record.tree else 0
    if swaps:
        text.append(
            f"The order of {count(swaps, 'merge')} in the tree is unresolved, because the "
            "brackets on their heights overlap."
        )
    return " ".join(text)


def _beside_noise(low: int, known: int) -> str:
    barriers = count(known, "barrier")
    if not low:
        return f"The {barriers} is larger than" if known == 1 else f"All {barriers} are larger than"
    share, verb = "All" if low == known else low, "is" if low == 1 else "are"
    return f"{share} of the {barriers} {verb} no larger than"


@dataclass(frozen=True, slots=True)
class _Measured:
    """The smallest value of one measure of flatness, and the minima it cannot be told from."""

    measure: str
    best: str
    text: str
    rivals: tuple[str, ...]

    def __str__(self) -> str:
        if self.rivals:
            return (
                f"By {self.measure} it is undecided: {self.best} has the smallest value, "
                f"{self.text}, but its interval overlaps "
                f"{'that' if len(self.rivals) == 1 else 'those'} of {listing(self.rivals)}."
            )
        return f"By {self.measure} the flattest minimum is {self.best}, {self.text}."


def _smallest(measure: str, values: dict[str, tuple[float, float, float, str]]) -> _Measured | None:
    """Read `values`, label to (value, lower, upper, text), the finite ones."""
    finite = {k: v for k, v in values.items() if all(map(math.isfinite, v[:3]))}
    if not finite:
        return None
    best = min(finite, key=lambda k: finite[k][0])
    rivals = tuple(k for k, v in finite.items() if k != best and v[1] <= finite[best][2])
    return _Measured(measure, best, finite[best][3], rivals)


def _flattest(record: SurveyRecord) -> str:
    if not record.minima:
        return ""
    names = labels(record)
    traces, tops = {}, {}
    for minimum in record.minima:
        if minimum.trace is not None:
            estimate = minimum.trace
            traces[names[minimum.id]] = (estimate.value, *estimate.interval, plain(estimate))
        top = top_eigenvalue(minimum)
        if top is not None:
            value, lower, upper, converged = top
            text = bracket(lower, upper) + ("" if converged else " (not converged)")
            tops[names[minimum.id]] = (value, lower, upper, text)
    measured = [
        m
        for m in (
            _smallest("the trace of the Hessian", traces),
            _smallest("its largest eigenvalue", tops),
        )
        if m is not None
    ]
    if not measured:
        return "Which minimum is the flattest is not known: no curvature was measured."
    if len(record.minima) == 1:
        values = " and ".join(f"{m.measure} is {m.text}" for m in measured)
        return f"At the only minimum {values}; there is none to compare it with."
    return " ".join([*map(str, measured), _agreement(measured), _SYMMETRY])


def _agreement(measured: Sequence[_Measured]) -> str:
    if len(measured) == 1:
        return "No other measure of flatness was taken."
    one, other = measured
    if one.rivals and other.rivals:
        return "So neither measure decides which is the flattest."
    if one.rivals or other.rivals:
        clear, vague = (other, one) if one.rivals else (one, other)
        if clear.best in (vague.best, *vague.rivals):
            return "Only one of the two decides, and the other does not speak against it."
        return f"The two disagree: {vague.measure} rules out {clear.best}."
    if one.best == other.best:
        return "Both measures agree."
    return "The two measures disagree, so which is the flattest depends on the measure."


def _caveats(record: SurveyRecord) -> tuple[str, ...]:
    names = labels(record)
    notes = []
    if not record.complete:
        notes.append("The survey is unfinished: what follows is what it had found so far.")
    if record.failures:
        jobs = listing([failure.job for failure in record.failures], 3)
        notes.append(f"{count(len(record.failures), 'job')} failed ({jobs}); see Failures.")
    stray = [names[m.id] for m in record.minima if not math.isfinite(m.loss)]
    if stray:
        notes.append(f"The loss is not finite at {listing(stray)}.")
    held = {str(leaf) for leaf in record.tree.leaves} if record.tree else set()
    outside = [names[m.id] for m in record.minima if m.id not in held]
    if record.tree is not None and outside:
        notes.append(f"The merge tree leaves out {listing(outside)}.")
    short = [names[m.id] for m in record.minima if not m.converged]
    if short:
        verb = "is" if len(short) == 1 else "are"
        notes.append(
            f"{listing(short)} {verb} not converged: the gradient there is above the search's "
            "tolerance, so the true minimum may lie lower."
        )
    open_paths = sum(not path.converged for path in record.paths)
    if open_paths:
        notes.append(
            f"{open_paths} of {count(len(record.paths), 'path')} did not converge, so the passes "
            "may be lower than stated."
        )
    gaps = sum(not math.isfinite(x) for p in record.paths for x in (*p.losses, *p.line_losses))
    if gaps:
        notes.append(f"The loss is not finite at {count(gaps, 'point')} of the paths.")
    for measure, missing in (
        ("trace", [m for m in record.minima if m.trace is None]),
        ("eigenvalues", [m for m in record.minima if top_eigenvalue(m) is None]),
        ("spectral density", [m for m in record.minima if m.spectrum is None]),
    ):
        if missing and len(missing) < len(record.minima):
            without = listing([names[m.id] for m in missing])
            notes.append(f"No {measure} at {without}, which the comparison leaves out.")
    return tuple(notes)
