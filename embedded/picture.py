"""Draws the contents of a scene: pictograms on a varied background, with overlap, occluders, blur and noise."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from embedded.categories import BY_NAME, CATEGORIES, FORK, PLACES
from embedded.scene import Contents, World, sample_contents

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE = 112
"""Side of a picture in pixels; all lengths below are for this size and grow with it."""
LARGEST_OBJECT = 52.0
LEAST_VISIBLE = 0.30
"""An object of which less than this fraction can be seen is not annotated."""
LEAST_PIXELS = 24

Pixels = NDArray[np.uint8]  # [side, side, 3]
Owners = NDArray[np.int8]  # [side, side]: which object a pixel shows, -1 for none
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class View:
    """From where a scene is seen: sizes in pixels, and how often something is in the way, out of focus or noisy."""

    typical: float
    smallest: float
    occluded: float
    blurred: float
    noisy: float


NEAR = View(typical=27.0, smallest=13.0, occluded=0.15, blurred=0.2, noisy=0.2)
FAR = View(typical=16.0, smallest=9.0, occluded=0.35, blurred=0.35, noisy=0.35)


@dataclass(frozen=True)
class Thing:
    """One object that can be seen. `index` is its value in the owners map."""

    name: str
    index: int
    area: int
    box: Box


@dataclass(frozen=True)
class Picture:
    place: str
    pixels: Pixels
    owners: Owners
    things: tuple[Thing, ...]


@cache
def sprites() -> dict[str, list[Image.Image]]:
    """Every pictogram once, cropped, with its longest side at 109 pixels or so (the font has one bitmap size)."""
    if not FONT.exists():
        raise FileNotFoundError(f"{FONT} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(FONT), 109)
    return {category.name: [_sprite(font, glyph) for glyph in category.glyphs] for category in CATEGORIES}


def _sprite(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image:
    canvas = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    text = "🍴" if glyph == FORK else glyph
    ImageDraw.Draw(canvas).text((20, 20), text, font=font, embedded_color=True)
    sprite = canvas.crop(canvas.getbbox())
    if glyph == FORK:
        sprite = sprite.crop((0, 0, sprite.width // 2, sprite.height))
        sprite = sprite.crop(sprite.getbbox())
    return sprite


def sample_picture(random: np.random.Generator, world: World, view: View, size: int = SIZE) -> Picture:
    """A picture with at least one object that can be seen."""
    while True:
        picture = draw(random, sample_contents(random, world), view, size)
        if picture.things:
            return picture


def draw(random: np.random.Generator, contents: Contents, view: View, size: int = SIZE) -> Picture:
    scale = size / SIZE
    canvas = _background(random, contents.place, size)
    owners = np.full((size, size), -1, np.int8)
    names = [name for name, count in contents.counts.items() for _ in range(count)]
    spread = np.exp(random.normal(0, 0.12))
    lengths = [view.typical * BY_NAME[name].size * spread * np.exp(random.normal(0, 0.27)) for name in names]
    lengths = [float(np.clip(length, view.smallest, LARGEST_OBJECT)) for length in lengths]
    # large ones first, so that small ones are not hidden
    order = np.argsort([-length * np.exp(random.normal(0, 0.25)) for length in lengths])
    placed: list[Box] = []
    full_areas: list[int] = []
    for number, which in enumerate(order):
        sprite = _posed(random, names[which], lengths[which] * scale)
        left, top = _free_spot(random, sprite, placed, size)
        canvas.paste(sprite, (left, top), sprite)
        opaque = np.asarray(sprite)[..., 3] > 110
        _claim(owners, opaque, left, top, number)
        full_areas.append(int(opaque.sum()))
    if random.random() < view.occluded:
        _occlude(random, canvas, owners, scale)
    pixels = _camera(random, canvas, view, scale)
    things = []
    for number, which in enumerate(order):
        rows, columns = np.nonzero(owners == number)
        if len(rows) < max(LEAST_PIXELS * scale**2, LEAST_VISIBLE * full_areas[number]):
            owners[owners == number] = -1
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        things.append(Thing(names[which], number, len(rows), box))
    return Picture(contents.place, pixels, owners, tuple(things))


def _background(random: np.random.Generator, place: str, size: int) -> Image.Image:
    palette = PLACES[place].palette
    if random.random() < 0.75:
        base = np.array(palette[random.integers(len(palette))], float)
    else:
        base = random.uniform(60, 245, 3)
    base = base + random.normal(0, 10, 3)
    other = base + random.normal(0, 24, 3)
    rows, columns = np.mgrid[0:size, 0:size] / size
    kind = random.integers(5)
    if kind == 0:
        weight = np.zeros((size, size))
    elif kind == 1:
        angle = random.uniform(0, 2 * np.pi)
        weight = np.cos(angle) * columns + np.sin(angle) * rows
        weight = (weight - weight.min()) / (np.ptp(weight) + 1e-6)
    elif kind == 2:
        cells = int(random.integers(3, 9))
        coarse = Image.fromarray(random.normal(0, 0.8, (cells, cells)).astype(np.float32))
        weight = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    elif kind == 3:
        angle, frequency = random.uniform(0, 2 * np.pi), random.uniform(3, 9)
        stripes = np.sin((np.cos(angle) * columns + np.sin(angle) * rows) * frequency * 2 * np.pi) > 0
        weight = 0.5 * stripes
    else:
        weight = (rows < random.uniform(0.3, 0.7)).astype(float)
    colours = base + (other - base) * weight[..., None]
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def _posed(random: np.random.Generator, name: str, length: float) -> Image.Image:
    """A pictogram of a category, resized, mirrored, turned and tinted."""
    variants = sprites()[name]
    sprite = variants[random.integers(len(variants))]
    scale = length / max(sprite.size)
    stretch = np.exp(random.normal(0, 0.05))
    width, height = max(3, round(sprite.width * scale * stretch)), max(3, round(sprite.height * scale / stretch))
    sprite = sprite.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if random.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = random.normal(0, 8) if random.random() < 0.93 else random.uniform(-90, 90)
    sprite = sprite.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    if random.random() < 0.4:
        values = np.asarray(sprite)
        tinted = values[..., :3] * np.exp(random.normal(0, 0.08, 3)) + random.normal(0, 8)
        tinted = np.clip(tinted, 0, 255).astype(np.uint8)
        sprite = Image.fromarray(np.concatenate([tinted, values[..., 3:]], axis=-1))
    return sprite


def _free_spot(random: np.random.Generator, sprite: Image.Image, placed: list[Box], size: int) -> tuple[int, int]:
    """The best of a few random spots: little overlap with what is there, a part may be cut off by the border."""
    width, height = sprite.size
    best_overlap, best = np.inf, (0, 0, 0, 0)
    for _ in range(8):
        left = int(random.integers(-width // 8, max(1, size - width + width // 8)))
        top = int(random.integers(-height // 8, max(1, size - height + height // 8)))
        overlap = 0.0
        for x0, y0, x1, y1 in placed:
            shared = max(0, min(left + width, x1) - max(left, x0)) * max(0, min(top + height, y1) - max(top, y0))
            overlap = max(overlap, shared / min(width * height, (x1 - x0) * (y1 - y0)))
        if overlap < best_overlap:
            best_overlap, best = overlap, (left, top, left + width, top + height)
        if overlap < 0.15:
            break
    placed.append(best)
    return best[0], best[1]


def _claim(owners: Owners, opaque: NDArray[np.bool_], left: int, top: int, number: int) -> None:
    size = len(owners)
    height, width = opaque.shape
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size, left + width), min(size, top + height)
    if x0 < x1 and y0 < y1:
        owners[y0:y1, x0:x1][opaque[y0 - top : y1 - top, x0 - left : x1 - left]] = number


def _occlude(random: np.random.Generator, canvas: Image.Image, owners: Owners, scale: float) -> None:
    size = len(owners)
    width, height = random.uniform(8 * scale, 30 * scale, 2)
    left, top = random.uniform(0, size - 10 * scale, 2)
    colour = tuple(int(value) for value in random.uniform(0, 255, 3))
    corners = (int(left), int(top), int(left + width), int(top + height))
    ImageDraw.Draw(canvas).rectangle(corners, fill=colour)
    owners[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1] = -1


def _camera(random: np.random.Generator, canvas: Image.Image, view: View, scale: float) -> Pixels:
    """Contrast, blur and noise of the whole picture."""
    if random.random() < view.blurred:
        canvas = canvas.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9) * scale))
    values: NDArray[Any] = np.asarray(canvas).astype(np.float32)
    if random.random() < 0.3:
        values = (values - 128) * random.uniform(0.75, 1.1) + 128 + random.normal(0, 10)
    if random.random() < view.noisy:
        values = values + random.normal(0, random.uniform(2, 8), values.shape)
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels
