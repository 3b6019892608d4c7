"""Loops of diffusers' pipelines, with a trivial network."""

import torch


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(x, t):
    """Return a smooth function of state and time, within 0.4 and 0.1 times the state."""
    return 0.4 * torch.cos(torch.as_tensor(t, dtype=torch.float32) / 300) * x + 0.1 * torch.sin(3 * x)


def draw(scheduler, steps=10, shape=(2, 4, 8, 8), generator=None, network=network, **times):
    """Return the sample of a pipeline's loop."""
    scheduler.set_timesteps(steps, **times)
    x = normals(*shape) * getattr(scheduler, "init_noise_sigma", 1.0)
    options = {} if generator is None else {"generator": generator}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t), t, x, return_dict=False, **options)[0]
    return x


def apart(ours, theirs):
    """Return the largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
