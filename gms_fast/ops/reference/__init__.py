"""The reference: every op in plain torch, written to be read.

It takes any floating dtype; the float64 results are the standard that kernels are tested against.
"""

from gms_fast.ops.reference.linear import data_estimate as data_estimate
from gms_fast.ops.reference.linear import led as led
from gms_fast.ops.reference.linear import linear_step as linear_step
from gms_fast.ops.reference.mixture import adan as adan
from gms_fast.ops.reference.mixture import draw as draw
from gms_fast.ops.reference.mixture import fit_mixture as fit_mixture
from gms_fast.ops.reference.moments import step_moments as step_moments
from gms_fast.ops.reference.philox import philox_normal as philox_normal
from gms_fast.ops.reference.philox import philox_uniform as philox_uniform
from gms_fast.ops.reference.philox import philox_words as philox_words
from gms_fast.ops.reference.quadrature import pick as pick
from gms_fast.ops.reference.quadrature import quadrature as quadrature
from gms_fast.ops.reference.step import gms_step as gms_step
from gms_fast.ops.reference.step import sample_mixture as sample_mixture
from gms_fast.ops.reference.step import split_variance as split_variance
