"""Optimisers: full-batch descent to a minimum and training by minibatches."""

from thalweg.optim.minimise import Minimum as Minimum
from thalweg.optim.minimise import minimise as minimise
from thalweg.optim.minimise import train as train
