"""Rendering of a scene: pictograms on a varied background, with overlap, occluders, blur and noise."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from embedded.data.categories import BY_NAME, CATEGORIES, FORK, PLACES
from embedded.data.scene_sampler import SceneContents, ScenePrior, sample_contents

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE = 112
"""Side of an image in pixels. All lengths below are for this size and scale with it."""
MAX_OBJECT_SIZE = 52.0

Pixels = NDArray[np.uint8]  # [side, side, 3]
InstanceMap = NDArray[np.int8]  # [side, side]: which object a pixel shows, -1 for none
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class View:
    """How the objects of a scene appear, and which are annotated.

    Attributes:
        typical_size: Longest side of an object of average size in pixels.
        min_size: Smallest longest side in pixels.
        occlusion_rate: Probability that something covers a part of the scene.
        blur_rate: Probability of blur.
        noise_rate: Probability of noise.
        min_visible_fraction: An object with a smaller visible fraction is not annotated.
        min_visible_pixels: An object with fewer visible pixels is not annotated.
    """

    typical_size: float
    min_size: float
    occlusion_rate: float
    blur_rate: float
    noise_rate: float
    min_visible_fraction: float = 0.30
    min_visible_pixels: int = 24


NEAR_VIEW = View(typical_size=27.0, min_size=13.0, occlusion_rate=0.15, blur_rate=0.2, noise_rate=0.2)
FAR_VIEW = View(
    typical_size=11.5,
    min_size=6.5,
    occlusion_rate=0.5,
    blur_rate=0.5,
    noise_rate=0.45,
    min_visible_fraction=0.2,
    min_visible_pixels=11,
)


@dataclass(frozen=True)
class SceneObject:
    """A visible object. `index` is its value in the instance map."""

    name: str
    index: int
    area: int
    box: Box


@dataclass(frozen=True)
class RenderedScene:
    """The image of a scene, the object that each pixel shows, and the visible objects.

    `hidden` names the categories of the scene whose objects are all covered, cut off or too small to be annotated.
    """

    place: str
    pixels: Pixels
    instance_map: InstanceMap
    objects: tuple[SceneObject, ...]
    hidden: tuple[str, ...] = ()


@cache
def load_sprites() -> dict[str, list[Image.Image]]:
    """Load every pictogram once, cropped. Its longest side is about 109 pixels, the font's only bitmap size.

    Returns:
        Sprites of each category.

    Raises:
        FileNotFoundError: The emoji font is not installed.
    """
    if not FONT.exists():
        raise FileNotFoundError(f"{FONT} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(FONT), 109)
    return {category.name: [_crop_sprite(font, glyph) for glyph in category.glyphs] for category in CATEGORIES}


def _crop_sprite(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image:
    canvas = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    text = "🍴" if glyph == FORK else glyph
    ImageDraw.Draw(canvas).text((20, 20), text, font=font, embedded_color=True)
    sprite = canvas.crop(canvas.getbbox())
    if glyph == FORK:
        sprite = sprite.crop((0, 0, sprite.width // 2, sprite.height))
        sprite = sprite.crop(sprite.getbbox())
    return sprite


def sample_scene(rng: np.random.Generator, prior: ScenePrior, view: View, size: int = SIZE) -> RenderedScene:
    """Sample and render a scene with at least one visible object."""
    while True:
        scene = render_scene(rng, sample_contents(rng, prior), view, size)
        if scene.objects:
            return scene


def render_scene(rng: np.random.Generator, contents: SceneContents, view: View, size: int = SIZE) -> RenderedScene:
    """Render a scene with given contents.

    Args:
        rng: Source of all random choices.
        contents: Place and objects.
        view: Sizes and disturbances.
        size: Side of the image in pixels.

    Returns:
        The scene. Objects that are mostly hidden are not among its objects.
    """
    scale = size / SIZE
    canvas = _draw_background(rng, contents.place, size)
    instance_map = np.full((size, size), -1, np.int8)
    names = [name for name, count in contents.counts.items() for _ in range(count)]
    spread = np.exp(rng.normal(0, 0.12))
    lengths = [view.typical_size * BY_NAME[name].size * spread * np.exp(rng.normal(0, 0.27)) for name in names]
    lengths = [float(np.clip(length, view.min_size, MAX_OBJECT_SIZE)) for length in lengths]
    # large ones first, so that small ones are not hidden
    order = np.argsort([-length * np.exp(rng.normal(0, 0.25)) for length in lengths])
    placed_boxes: list[Box] = []
    full_areas: list[int] = []
    for number, source in enumerate(order):
        sprite = _transform_sprite(rng, names[source], lengths[source] * scale)
        left, top = _find_free_position(rng, sprite, placed_boxes, size)
        canvas.paste(sprite, (left, top), sprite)
        opaque = np.asarray(sprite)[..., 3] > 110
        _mark_visible(instance_map, opaque, left, top, number)
        full_areas.append(int(opaque.sum()))
    if rng.random() < view.occlusion_rate:
        _add_occluder(rng, canvas, instance_map, scale)
    pixels = _apply_camera(rng, canvas, view, scale)
    objects = []
    for number, source in enumerate(order):
        rows, columns = np.nonzero(instance_map == number)
        if len(rows) < max(view.min_visible_pixels * scale**2, view.min_visible_fraction * full_areas[number]):
            instance_map[instance_map == number] = -1
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        objects.append(SceneObject(names[source], number, len(rows), box))
    visible = {obj.name for obj in objects}
    hidden = tuple(name for name in contents.counts if name not in visible)
    return RenderedScene(contents.place, pixels, instance_map, tuple(objects), hidden)


def _draw_background(rng: np.random.Generator, place: str, size: int) -> Image.Image:
    palette = PLACES[place].palette
    base_colour = (
        np.array(palette[rng.integers(len(palette))], float) if rng.random() < 0.75 else rng.uniform(60, 245, 3)
    )
    base_colour = base_colour + rng.normal(0, 10, 3)
    second_colour = base_colour + rng.normal(0, 24, 3)
    rows, columns = np.mgrid[0:size, 0:size] / size
    kind = rng.integers(5)
    if kind == 0:
        weight = np.zeros((size, size))
    elif kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        weight = np.cos(angle) * columns + np.sin(angle) * rows
        weight = (weight - weight.min()) / (np.ptp(weight) + 1e-6)
    elif kind == 2:
        cells = int(rng.integers(3, 9))
        coarse = Image.fromarray(rng.normal(0, 0.8, (cells, cells)).astype(np.float32))
        weight = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    elif kind == 3:
        angle, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(3, 9)
        stripes = np.sin((np.cos(angle) * columns + np.sin(angle) * rows) * frequency * 2 * np.pi) > 0
        weight = 0.5 * stripes
    else:
        weight = (rows < rng.uniform(0.3, 0.7)).astype(float)
    pixels = base_colour + (second_colour - base_colour) * weight[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _transform_sprite(rng: np.random.Generator, name: str, length: float) -> Image.Image:
    """Resize, mirror, rotate and tint a random pictogram of a category."""
    variants = load_sprites()[name]
    sprite = variants[rng.integers(len(variants))]
    scale = length / max(sprite.size)
    stretch = np.exp(rng.normal(0, 0.05))
    width, height = max(3, round(sprite.width * scale * stretch)), max(3, round(sprite.height * scale / stretch))
    sprite = sprite.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.normal(0, 8) if rng.random() < 0.93 else rng.uniform(-90, 90)
    sprite = sprite.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    if rng.random() < 0.4:
        values = np.asarray(sprite)
        tinted = values[..., :3] * np.exp(rng.normal(0, 0.08, 3)) + rng.normal(0, 8)
        tinted = np.clip(tinted, 0, 255).astype(np.uint8)
        sprite = Image.fromarray(np.concatenate([tinted, values[..., 3:]], axis=-1))
    return sprite


def _find_free_position(
    rng: np.random.Generator, sprite: Image.Image, placed_boxes: list[Box], size: int
) -> tuple[int, int]:
    """Choose the position with the least overlap among up to eight random ones; the border may cut the object."""
    width, height = sprite.size
    best_overlap, best_box = np.inf, (0, 0, 0, 0)
    for _ in range(8):
        left = int(rng.integers(-width // 8, max(1, size - width + width // 8)))
        top = int(rng.integers(-height // 8, max(1, size - height + height // 8)))
        overlap = 0.0
        for x0, y0, x1, y1 in placed_boxes:
            shared = max(0, min(left + width, x1) - max(left, x0)) * max(0, min(top + height, y1) - max(top, y0))
            overlap = max(overlap, shared / min(width * height, (x1 - x0) * (y1 - y0)))
        if overlap < best_overlap:
            best_overlap, best_box = overlap, (left, top, left + width, top + height)
        if overlap < 0.15:
            break
    placed_boxes.append(best_box)
    return best_box[0], best_box[1]


def _mark_visible(instance_map: InstanceMap, opaque: NDArray[np.bool_], left: int, top: int, number: int) -> None:
    size = len(instance_map)
    height, width = opaque.shape
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size, left + width), min(size, top + height)
    if x0 < x1 and y0 < y1:
        instance_map[y0:y1, x0:x1][opaque[y0 - top : y1 - top, x0 - left : x1 - left]] = number


def _add_occluder(rng: np.random.Generator, canvas: Image.Image, instance_map: InstanceMap, scale: float) -> None:
    size = len(instance_map)
    width, height = rng.uniform(8 * scale, 30 * scale, 2)
    left, top = rng.uniform(0, size - 10 * scale, 2)
    colour = tuple(int(value) for value in rng.uniform(0, 255, 3))
    corners = (int(left), int(top), int(left + width), int(top + height))
    ImageDraw.Draw(canvas).rectangle(corners, fill=colour)
    instance_map[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1] = -1


def _apply_camera(rng: np.random.Generator, canvas: Image.Image, view: View, scale: float) -> Pixels:
    """Change contrast and add blur and noise to the whole image."""
    if rng.random() < view.blur_rate:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * scale))
    values: NDArray[Any] = np.asarray(canvas).astype(np.float32)
    if rng.random() < 0.3:
        values = (values - 128) * rng.uniform(0.75, 1.1) + 128 + rng.normal(0, 10)
    if rng.random() < view.noise_rate:
        values = values + rng.normal(0, rng.uniform(2, 8), values.shape)
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels
