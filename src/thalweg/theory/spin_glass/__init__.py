"""The spherical spin glass: a random landscape, and what is known of it exactly."""

from thalweg.theory.spin_glass.complexity import EnergyBands as EnergyBands
from thalweg.theory.spin_glass.complexity import asymptotic_log_count as asymptotic_log_count
from thalweg.theory.spin_glass.complexity import complexity as complexity
from thalweg.theory.spin_glass.complexity import energy_bands as energy_bands
from thalweg.theory.spin_glass.complexity import energy_level as energy_level
from thalweg.theory.spin_glass.complexity import ground_state_energy as ground_state_energy
from thalweg.theory.spin_glass.complexity import largest_index as largest_index
from thalweg.theory.spin_glass.critical_points import CriticalPoints as CriticalPoints
from thalweg.theory.spin_glass.descent import LocalMinima as LocalMinima
from thalweg.theory.spin_glass.descent import local_minima as local_minima
from thalweg.theory.spin_glass.dynamics import Trajectory as Trajectory
from thalweg.theory.spin_glass.dynamics import descend as descend
from thalweg.theory.spin_glass.dynamics import gradient_flow as gradient_flow
from thalweg.theory.spin_glass.dynamics import langevin as langevin
from thalweg.theory.spin_glass.enumeration import CountComparison as CountComparison
from thalweg.theory.spin_glass.enumeration import Enumeration as Enumeration
from thalweg.theory.spin_glass.enumeration import compare_counts as compare_counts
from thalweg.theory.spin_glass.enumeration import (
    enumerate_critical_points as enumerate_critical_points,
)
from thalweg.theory.spin_glass.enumeration import enumerate_samples as enumerate_samples
from thalweg.theory.spin_glass.enumeration import joint_p_value as joint_p_value
from thalweg.theory.spin_glass.floor import EnergyFloor as EnergyFloor
from thalweg.theory.spin_glass.floor import energy_floor as energy_floor
from thalweg.theory.spin_glass.kac_rice import ExpectedCount as ExpectedCount
from thalweg.theory.spin_glass.kac_rice import (
    critical_energy_log_density as critical_energy_log_density,
)
from thalweg.theory.spin_glass.kac_rice import expected_critical_points as expected_critical_points
from thalweg.theory.spin_glass.kantorovich import PointCertificates as PointCertificates
from thalweg.theory.spin_glass.kantorovich import certify_points as certify_points
from thalweg.theory.spin_glass.mixture import Mixture as Mixture
from thalweg.theory.spin_glass.model import SphericalPSpin as SphericalPSpin
from thalweg.theory.spin_glass.newton import NewtonRuns as NewtonRuns
from thalweg.theory.spin_glass.newton import newton as newton
from thalweg.theory.spin_glass.noise import CouplingNoise as CouplingNoise
from thalweg.theory.spin_glass.noise import IsotropicNoise as IsotropicNoise
from thalweg.theory.spin_glass.relaxation import Aging as Aging
from thalweg.theory.spin_glass.relaxation import Relaxation as Relaxation
from thalweg.theory.spin_glass.relaxation import age as age
from thalweg.theory.spin_glass.relaxation import relax as relax
from thalweg.theory.spin_glass.search import find_critical_points as find_critical_points
from thalweg.theory.spin_glass.spectra import HessianSample as HessianSample
from thalweg.theory.spin_glass.spectra import hessian_law as hessian_law
from thalweg.theory.spin_glass.spectra import index_fraction as index_fraction
from thalweg.theory.spin_glass.spectra import lowest_eigenvalue as lowest_eigenvalue
from thalweg.theory.spin_glass.spectra import sample_hessians as sample_hessians
from thalweg.theory.spin_glass.thresholds import GroundState as GroundState
from thalweg.theory.spin_glass.thresholds import algorithmic_energy as algorithmic_energy
from thalweg.theory.spin_glass.thresholds import one_step_ground_state as one_step_ground_state
from thalweg.theory.spin_glass.thresholds import threshold_energy as threshold_energy
from thalweg.theory.spin_glass.thresholds import trivialising_field as trivialising_field
from thalweg.theory.spin_glass.trivialisation import Trivialisation as Trivialisation
from thalweg.theory.spin_glass.trivialisation import trivialisation as trivialisation
