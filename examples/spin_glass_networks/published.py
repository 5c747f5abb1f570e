"""What Choromanska et al. (2015) print, and what their theory assumes.

A. Choromanska, M. Henaff, M. Mathieu, G. Ben Arous and Y. LeCun, "The loss surfaces of multilayer
networks", AISTATS 2015; the labels of the assumptions are those of the open problem of COLT 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.estimate import Estimate

THRESHOLD_ENERGY = -1.632993  # -E_inf at p = 3
GROUND_STATE = -1.656998  # -E_0 at p = 3
# Figure 3, left: the histogram at 500 spins, read off: centre and ends.
GLASS_500 = (-1.60, -1.635, -1.57)
# Table 1: correlation of train and test loss.
CORRELATION = {25: 0.7616, 50: 0.6861, 100: 0.5983, 250: 0.5302, 500: 0.4081}
# Figure 7, read off: the range of the train and test losses of 1000 networks.
TRAIN_RANGE = {
    10: (0.209, 0.252), 25: (0.115, 0.136), 50: (0.085, 0.098), 100: (0.074, 0.081),
    250: (0.0655, 0.069), 500: (0.0615, 0.0638),
}  # fmt: skip
TEST_RANGE = {
    10: (0.20, 0.25), 25: (0.119, 0.145), 50: (0.093, 0.111), 100: (0.082, 0.095),
    250: (0.0775, 0.084), 500: (0.0745, 0.080),
}  # fmt: skip
# Figure 10, read off: mean and variance of the test loss.
TEST_MEAN = {10: 0.225, 25: 0.131, 50: 0.102, 100: 0.089, 250: 0.081, 500: 0.077}
TEST_VARIANCE = {10: 6.5e-5, 25: 2e-5, 50: 7e-6, 100: 3e-6, 250: 1e-6, 500: 5e-7}
INDEX_LIMIT = 0.015  # Figure 4 and its supplement: no normalised index above, up to 100 units


@dataclass(frozen=True)
class Assumption:
    """An assumption under which a network's loss is a spin glass's energy.

    Attributes:
        label: As in the open problem; p for plausible, u for unrealistic, in its authors' eyes.
        says: What is assumed.
        here: Whether it holds for a trained network with one hidden layer; ``{}`` is measured.
    """

    label: str
    says: str
    here: str


ASSUMPTIONS = (
    Assumption(
        "A1p", "every path is active with the same probability",
        "fails: a hidden unit is active on {activity} of the images (smallest, mean, largest)",
    ),
    Assumption(
        "A2p", "inputs are independent standard normal numbers, a new one on every path",
        "fails: a pixel is at least 0 and at most 1, pixels are correlated ({pixels} in mean "
        "absolute value), and one pixel feeds all paths that begin at it",
    ),
    Assumption(
        "A3p", "there are few distinct weights (Λ), so that weights repeat",
        "fails: all {dim} parameters are distinct (the authors tie 95 % afterwards)",
    ),
    Assumption(
        "A4p", "the distinct weights are spread evenly over the paths",
        "fails: a weight of the first layer is on 10 paths, one of the second on as many as there "
        "are pixels, and no path has two of one layer",
    ),
    Assumption(
        "A5u", "whether a path is active does not depend on the input",
        "fails: a ReLU is active or not because of the input, and of nothing else",
    ),
    Assumption(
        "A6u", "paths are active independently of each other",
        "fails: all paths through a unit are active at once, and two units agree "
        "({units} mean absolute correlation)",
    ),
    Assumption(
        "A7p", "the weights lie on a sphere: their mean square is 1",
        "fails: nothing in SGD holds them there; their mean square ends at {square}",
    ),
)  # fmt: skip

DOES_NOT_FOLLOW = """\
What follows from theory: on the sphere, at p = 3 and large n, all critical points of low index lie
between -E_0 = -1.656998 and -E_inf = -1.632993 per spin, with a probability that tends to one
exponentially fast; higher up the index grows with n. All of this is about the spin glass, and none
of it says where a descent ends. That descents come down to near -E_inf is seen, and is the subject
of another theory (dynamics); at finite n they end above it: at 500 spins near -1.60, also in the
paper's own figure, not at -1.633 as its text has it.

What does not: that a network's losses must concentrate, that its critical points of high index lie
higher, or that its poor minima vanish. That step rests on assumptions A1p to A7p, of which none
holds for the trained network (below). Besides: one hidden layer is H = 2 in their notation, whose
spin glass has p = 2, with 2n critical points, one pair of them minima and no bad ones; the network
is set beside p = 3 all the same. It has ten outputs and the cross-entropy; the theorem has one
output and the absolute or the hinge loss. That both
distributions narrow as the system grows is what sums of many weakly dependent terms do, without a
spin glass.
"""


def judge(ours: Estimate, low: float, high: float, comparable: str = "") -> str:
    """Say whether an interval meets a published range.

    Args:
        ours: What was measured.
        low: Lower end of what is printed.
        high: Upper end.
        comparable: Why the two cannot be compared; empty if they can.
    """
    if comparable:
        return f"not comparable ({comparable})"
    if not ours.stderr >= 0:
        return "too few results"
    meets = ours.interval[0] <= high and ours.interval[1] >= low
    return "agrees" if meets else "**disagrees**"
