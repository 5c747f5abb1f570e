"""Landscapes: functions of one flat vector, and networks seen as such functions."""

from thalweg.landscape.enclosure import Enclosed as Enclosed
from thalweg.landscape.enclosure import NoEnclosure as NoEnclosure
from thalweg.landscape.enclosure import SegmentEnclosure as SegmentEnclosure
from thalweg.landscape.enclosure import SegmentRange as SegmentRange
from thalweg.landscape.enclosure import enclose as enclose
from thalweg.landscape.function import FunctionLandscape as FunctionLandscape
from thalweg.landscape.model import ModelLandscape as ModelLandscape
from thalweg.landscape.protocols import Batch as Batch
from thalweg.landscape.protocols import FiniteSum as FiniteSum
from thalweg.landscape.protocols import Landscape as Landscape
from thalweg.landscape.protocols import Normalised as Normalised
from thalweg.landscape.protocols import Point as Point
from thalweg.landscape.protocols import Structured as Structured
from thalweg.landscape.protocols import for_evaluation as for_evaluation
from thalweg.landscape.seeding import Seed as Seed
from thalweg.landscape.seeding import make_generator as make_generator
from thalweg.landscape.shallow import ShallowNet as ShallowNet
from thalweg.landscape.shallow import shallow_maximum as shallow_maximum
from thalweg.landscape.sharded import ShardedLandscape as ShardedLandscape
from thalweg.landscape.spec import ParameterSpec as ParameterSpec
