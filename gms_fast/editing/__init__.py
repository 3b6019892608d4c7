"""Image editing with a diffusion model: strokes, image-to-image, inpainting and inversion."""

from gms_fast.editing.inpaint import inpaint as inpaint
from gms_fast.editing.inversion import Inversion as Inversion
from gms_fast.editing.inversion import interpolate as interpolate
from gms_fast.editing.inversion import invert as invert
from gms_fast.editing.painter import paint as paint
from gms_fast.editing.repaint import Inpainting as Inpainting
from gms_fast.editing.start import noised as noised
from gms_fast.editing.start import timesteps as timesteps
from gms_fast.editing.stroke import stroke as stroke

__all__ = [
    "Inpainting",
    "Inversion",
    "inpaint",
    "interpolate",
    "invert",
    "noised",
    "paint",
    "stroke",
    "timesteps",
]
