"""Reports and figures: reads records and results, computes nothing."""

from thalweg.report.page import render as render
from thalweg.report.page import write as write
from thalweg.report.photograph import photograph as photograph
from thalweg.report.photograph import save as save
from thalweg.report.plot import plot as plot
from thalweg.report.words import Answers as Answers
from thalweg.report.words import answers as answers
