"""Problem of the published estimator's numbers, and networks to measure."""

import json

import places
import torch

from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import EDM, Flow, VPContinuous, VPLinear

VECTORS = json.loads((places.VECTORS / "dpm_solver_v3_vectors.json").read_text())
SCHEDULES = [VPContinuous(), EDM(), Flow(t_max=0.99, t_min=0.01), VPLinear()]
WEIGHTS, MEANS, STDS = (torch.tensor(VECTORS["problem"][k], dtype=torch.float64) for k in ("weights", "means", "stds"))


def tensors(entry):
    """Return the lists of numbers of an entry of the vectors as tensors."""
    numbers = {k: v for k, v in entry.items() if isinstance(v, list) and not isinstance(v[0], dict)}
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}


class Mixture:
    """Exact noise of the vectors' 2-D mixture of diagonal Gaussians."""

    sample_shape, prediction = (2,), "noise"

    def __init__(self, schedule, form="noise"):
        self.schedule, self.prediction = schedule, form

    def __call__(self, x, time):
        t = self.schedule.from_network_time(time)[:, None]
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        r = sigma / alpha
        away, spread = x[:, None] / alpha[:, None] - MEANS, STDS**2 + r[:, None] ** 2
        p = torch.softmax(WEIGHTS.log() - 0.5 * (away**2 / spread + spread.log()).sum(-1), dim=-1)[..., None]
        eps = r * (p * away / spread).sum(1)
        x_0 = x / alpha - r * eps
        return {
            "noise": lambda: eps,
            "x0": lambda: x_0,
            "v": lambda: alpha * eps - sigma * x_0,
            "flow": lambda: eps - x_0,
            "edm": lambda: (x_0 - 0.25 / (r * r + 0.25) / alpha * x) * (r * r + 0.25).sqrt() / (0.5 * r),
        }[self.prediction]()


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    i = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[i] + STDS[i] * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(attention=(1,)):
    """Return a small float64 network with attention."""
    torch.manual_seed(0)
    model = MomentUNet(
        image_size=4, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=attention, head=None,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


SETTINGS = {"N": 4, "samples": 20, "t_max": 20.0, "t_min": 0.05}
