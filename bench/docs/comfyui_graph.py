"""Draw integrations/comfyui/graph.png: `python -m bench.docs.comfyui_graph`.

The picture shows a graph of ComfyUI with a sampler of gms_fast.
"""

import argparse
import io

from PIL import Image, ImageDraw, ImageFont

from bench.records.checkout import ROOT
from gms_fast.storage import atomic

FILE = ROOT / "integrations" / "comfyui" / "graph.png"
WIDTH, HEIGHT, ROW, TITLE = 930, 400, 22, 26
BACK, BODY, HEAD, OURS, INK, FAINT = "#222226", "#35353b", "#45454d", "#1b6ca8", "#e6e6e6", "#9a9aa2"
COLOURS = {
    "MODEL": "#b39ddb",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "SAMPLER": "#8dd98d",
    "SIGMAS": "#cdffcd",
}
Place = tuple[int, int]
# by title: place and width, and the names of inputs, outputs and widgets
NODES: dict[str, tuple[int, int, int, list[str], list[str], list[str]]] = {
    "Load Checkpoint": (20, 20, 180, [], ["MODEL"], ["ckpt_name"]),
    "CLIP Text Encode": (20, 125, 180, [], ["CONDITIONING"], ["positive, negative"]),
    "Empty Latent Image": (20, 300, 180, [], ["LATENT"], ["width, height"]),
    "BasicScheduler": (270, 20, 230, ["MODEL"], ["SIGMAS"], ["scheduler: karras", "steps: 10"]),
    "ER-SDE (gms_fast)": (270, 190, 230, [], ["SAMPLER"], ["noise_scale: er_sde_4", "max_stage: 3", "s_noise: 1.0"]),
    "SamplerCustom": (
        590, 90, 180, ["MODEL", "CONDITIONING", "SAMPLER", "SIGMAS", "LATENT"], ["LATENT"], ["noise_seed", "cfg"]
    ),
    "VAE Decode": (800, 90, 110, ["LATENT"], [], []),
}  # fmt: skip
LINKS = [
    ("Load Checkpoint", "BasicScheduler", "MODEL"),
    ("Load Checkpoint", "SamplerCustom", "MODEL"),
    ("CLIP Text Encode", "SamplerCustom", "CONDITIONING"),
    ("Empty Latent Image", "SamplerCustom", "LATENT"),
    ("BasicScheduler", "SamplerCustom", "SIGMAS"),
    ("ER-SDE (gms_fast)", "SamplerCustom", "SAMPLER"),
    ("SamplerCustom", "VAE Decode", "LATENT"),
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    atomic.write_bytes(FILE, encoded())


def encoded() -> bytes:
    """Return the picture as a PNG."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BACK)
    draw = ImageDraw.Draw(image)
    for link in LINKS:
        _link(draw, *link)
    for title in NODES:
        _node(draw, title)
    file = io.BytesIO()
    image.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def _node(draw: ImageDraw.ImageDraw, title: str) -> None:
    x, y, width, inputs, outputs, widgets = NODES[title]
    rows = max(len(inputs), len(outputs)) + len(widgets)
    box = (x, y, x + width, y + TITLE + rows * ROW + 8)
    draw.rounded_rectangle(box, 8, BODY, OURS if "gms_fast" in title else HEAD, 2)
    draw.rounded_rectangle((x, y, x + width, y + TITLE), 8, OURS if "gms_fast" in title else HEAD)
    _text(draw, (x + 12, y + 5), title)
    for kind in inputs:
        px, py = _input(title, kind)
        _dot(draw, (px, py), kind)
        _text(draw, (px + 12, py - 8), kind.lower())
    for kind in outputs:
        px, py = _output(title, kind)
        _dot(draw, (px, py), kind)
        _text(draw, (px - 12, py - 8), kind, anchor="ra")
    for i, widget in enumerate(widgets):
        _text(draw, (x + 16, y + TITLE + (max(len(inputs), len(outputs)) + i) * ROW + 5), widget, FAINT)


def _link(draw: ImageDraw.ImageDraw, source: str, target: str, kind: str) -> None:
    """Draw a cubic from an output to an input, level at both ends and behind the nodes."""
    (x0, y0), (x1, y1) = _output(source, kind), _input(target, kind)
    reach = max(60, (x1 - x0) // 2)
    places = []
    for i in range(41):
        t = i / 40
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        places.append((a * x0 + b * (x0 + reach) + c * (x1 - reach) + d * x1, (a + b) * y0 + (c + d) * y1))
    draw.line(places, COLOURS[kind], 2, "curve")


def _input(title: str, kind: str) -> Place:
    x, y, _, inputs, _, _ = NODES[title]
    return x, y + TITLE + inputs.index(kind) * ROW + 14


def _output(title: str, kind: str) -> Place:
    x, y, width, _, outputs, _ = NODES[title]
    return x + width, y + TITLE + outputs.index(kind) * ROW + 14


def _dot(draw: ImageDraw.ImageDraw, place: Place, kind: str) -> None:
    draw.ellipse((place[0] - 4, place[1] - 4, place[0] + 4, place[1] + 4), COLOURS[kind])


def _text(draw: ImageDraw.ImageDraw, place: Place, text: str, colour: str = INK, anchor: str = "la") -> None:
    draw.text(place, text, colour, ImageFont.load_default(13), anchor)


if __name__ == "__main__":
    main()
