"""Gaussian Mixture Solvers for diffusion models, with the mixture fit and draw fused into one kernel.

>>> import gms_fast
>>> model = gms_fast.load("mnist")
>>> x = gms_fast.sample(model, steps=10)  # (16, 1, 28, 28) in [-1, 1]
"""

from gms_fast import interrupts

if interrupts.is_command():
    interrupts.guard()  # before torch is imported, which takes a second

from gms_fast import data as data
from gms_fast import guidance as guidance
from gms_fast import models as models
from gms_fast import ops as ops
from gms_fast import schedules as schedules
from gms_fast import search as search
from gms_fast import solvers as solvers
from gms_fast import statistics as statistics
from gms_fast import training as training
from gms_fast.io import load as load
from gms_fast.io import save as save
from gms_fast.ops.dispatch import backends as backends
from gms_fast.ops.dispatch import set_backend as set_backend
from gms_fast.sampling import sample as sample
from gms_fast.solvers import Solver as Solver
from gms_fast.stepping import Stepper as Stepper
from gms_fast.steps import StepCoefficients as StepCoefficients
from gms_fast.types import Mixture as Mixture
from gms_fast.types import NoiseMoments as NoiseMoments
from gms_fast.version import __version__ as __version__
