"""Readable titles, column heads and row names for the tables in bench/results/*.md."""

import re

WORDS = (  # (pattern at the start of a title or table row, replacement)
    # components.md and eigenbasis.md: samplers
    (r"\| draw \|", "| sampler |"),
    (r"\| n = 1 \(DDPM\) \|", "| 1 node (DDPM) |"),
    (r"\| gaussian \(SN-DDPM\) \|", "| SN-DDPM |"),
    (r"\| (?:GMS )?(exact|free)(?:, element)? \|", r"| GMS (\1 fit) |"),
    (r"\| (?:GMS )?(exact|free), sample \|", r"| GMS (\1 fit, shared component) |"),
    (r"\| n = (\d) \+ variance, sample \|", r"| \1 widened nodes, shared choice |"),
    (r"\| n = (\d), sample \|", r"| \1 nodes, shared choice |"),
    (r"\| n = (\d) \+ variance(?:, element)? \|", r"| \1 widened nodes |"),
    (r"\| n = (\d)(?:, element)? \|", r"| \1 nodes |"),
    (r"\| GMS free along eigenvectors \|", "| GMS (free fit) along eigenvectors |"),
    (r"\| eigenbasis only \|", "| covariance in all steps |"),
    (r"\| eigenbasis to ([\d.]+), then exact, sample", r"| covariance to \1, then GMS (exact fit, shared component)"),
    (r"\| eigenbasis to ([\d.]+), then free, element \|", r"| covariance to \1, then GMS (free fit) |"),
    (r"\| eigenbasis to ([\d.]+) \|", r"| covariance to \1, then GMS |"),
    (r"\| correlated draws \|", "| GMS with correlated draws |"),
    (r"\| Gaussian with the whole covariance \|", "| full covariance of x_0 given x_t |"),
    (r"\| data against data \|", "| *real against real* |"),
    (r"\| its Gaussian \|", "| *Gaussian control* |"),
    (r"## (.*), Wasserstein-1$", r"## \1, Wasserstein-1 distance"),
    # jacobian.md
    (
        r"## Plain calls that a call takes$",
        "## Cost of one evaluation with a variance estimate, in plain network evaluations",
    ),
    (r"\| (derivative|difference|two backward passes), 1 \|", r"| \1, 1 probe |"),
    (r"\| (derivative|difference|two backward passes), (\d) \|", r"| \1, \2 probes |"),
    (r"\| way, probes \|", "| variance estimate |"),
)
ANYWHERE = (
    (r"\| digits, batch (\d+)", r"| 8x8 network, batch of \1"),
    (r"\| mnist, batch (\d+)", r"| 28x28 network, batch of \1"),
    (r"\| UNet2DModel, batch (\d+)", r"| UNet2DModel, batch of \1"),
    (r"\(K=(\d+)\)", r"(K = \1)"),
    (r"\| K=(\d+)(?= \|)", r"| K = \1"),
    (r"\b(\d+) ranges of (\d+) samples,", r"\1 sets of \2 samples,"),
    (
        r"\b(\d+) ranges of (\d+) mixture-1d, (\d+) eight, (\d+) exact-digits, (\d+) digits,",
        r"\1 sets of \2 samples of the two Gaussians, \3 of the ring, \4 of digits with exact moments and "
        r"\5 of digits with learned moments,",
    ),
    (r"\((\d+) samples, (\d+) digits, (\d+) seeds,", r"(\3 sets of \1 samples in one dimension or \2 digits,"),
    (r"\((\d+) samples, (\d+) seeds,", r"(\2 sets of \1 samples,"),
    (r"\b(\d{1,3})(\d{3})(?= (?:samples|digits|of)\b)", r"\1,\2"),
)


def reworded(text: str) -> str:
    """Replace the terse names of a result file by those of the report; figures stay as they are."""
    for pattern, words in WORDS:
        text = re.sub(f"^{pattern}", words, text, flags=re.MULTILINE)
    for pattern, words in ANYWHERE:
        text = re.sub(pattern, words, text)
    return text
