"""What theory says of landscapes: models that can be sampled, and formulas that predict them."""

from thalweg.theory import funnel as funnel
from thalweg.theory import mean_field as mean_field
from thalweg.theory import random_energy as random_energy
from thalweg.theory import random_matrix as random_matrix
from thalweg.theory import spin_glass as spin_glass
from thalweg.theory import tensors as tensors
