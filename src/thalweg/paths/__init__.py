"""Paths between minima: lines and strings, how high they climb, and the passes on them."""

from thalweg.paths.connect import connect as connect
from thalweg.paths.connect import is_connected as is_connected
from thalweg.paths.height import Profile as Profile
from thalweg.paths.height import bracket_maximum as bracket_maximum
from thalweg.paths.line import line as line
from thalweg.paths.path import Path as Path
from thalweg.paths.path import join as join
from thalweg.paths.path import measure as measure
from thalweg.paths.saddle import Saddle as Saddle
from thalweg.paths.saddle import climb as climb
from thalweg.paths.string import string as string
