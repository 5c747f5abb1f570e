"""The HTML report of a survey: reads a record, computes nothing."""

from thalweg.report.page import render as render
from thalweg.report.page import write as write
from thalweg.report.words import Answers as Answers
from thalweg.report.words import answers as answers
