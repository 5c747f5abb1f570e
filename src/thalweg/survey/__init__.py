"""Surveys: what a landscape holds, found job by job and kept on disk."""

from thalweg.survey.config import SurveyConfig as SurveyConfig
from thalweg.survey.errors import Interrupted as Interrupted
from thalweg.survey.errors import SurveyError as SurveyError
from thalweg.survey.records import AlongRecord as AlongRecord
from thalweg.survey.records import BalancedRecord as BalancedRecord
from thalweg.survey.records import BarrierRecord as BarrierRecord
from thalweg.survey.records import DensityRecord as DensityRecord
from thalweg.survey.records import EigenRecord as EigenRecord
from thalweg.survey.records import FailureRecord as FailureRecord
from thalweg.survey.records import LawRecord as LawRecord
from thalweg.survey.records import LayerRecord as LayerRecord
from thalweg.survey.records import MinimumRecord as MinimumRecord
from thalweg.survey.records import PathRecord as PathRecord
from thalweg.survey.records import SpectrumRecord as SpectrumRecord
from thalweg.survey.records import SurveyRecord as SurveyRecord
from thalweg.survey.status import Status as Status
from thalweg.survey.survey import Survey as Survey
