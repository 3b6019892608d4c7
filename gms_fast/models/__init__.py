"""Networks with moment heads, adapters for other networks, and models with exact moments."""

from gms_fast.models.analytic import GaussianMixture1D as GaussianMixture1D
from gms_fast.models.analytic import PointCloud as PointCloud
from gms_fast.models.jacobian_variance import JacobianVariance as JacobianVariance
from gms_fast.models.moment_heads import MomentHeads as MomentHeads
from gms_fast.models.unet import MomentUNet as MomentUNet
from gms_fast.models.wrap import wrap as wrap

__all__ = [
    "GaussianMixture1D",
    "JacobianVariance",
    "MomentHeads",
    "MomentUNet",
    "PointCloud",
    "wrap",
]
