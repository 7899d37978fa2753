"""MSCOCO categories with a clear pictogram, and the places where each of them usually occurs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """An MSCOCO category that a scene can show.

    Attributes:
        coco_id: Identifier in MSCOCO.
        name: Name in MSCOCO.
        glyphs: Pictograms, one of which is drawn.
        size: Typical size relative to the other objects of a scene.
        plural: Plural where it is not formed with -s.
    """

    coco_id: int
    name: str
    glyphs: tuple[str, ...]
    size: float
    plural: str = ""

    @property
    def plural_name(self) -> str:
        return self.plural or self.name + "s"

    @property
    def with_article(self) -> str:
        return ("an " if self.name[0] in "aeiou" else "a ") + self.name


FORK = "fork, the left half of the fork-and-knife pictogram"

CATEGORIES = (
    Category(1, "person", ("🧍", "🚶"), 1.25, "people"),
    Category(2, "bicycle", ("🚲",), 1.15),
    Category(3, "car", ("🚗", "🚕"), 1.25),
    Category(6, "bus", ("🚌",), 1.4, "buses"),
    Category(7, "train", ("🚆", "🚂"), 1.4),
    Category(8, "truck", ("🚚",), 1.3),
    Category(9, "boat", ("⛵",), 1.25),
    Category(10, "traffic light", ("🚦",), 0.95),
    Category(16, "bird", ("🐦",), 0.8),
    Category(17, "cat", ("🐈",), 1.0),
    Category(18, "dog", ("🐕", "🐩"), 1.05),
    Category(19, "horse", ("🐎",), 1.25),
    Category(20, "sheep", ("🐑",), 1.05, "sheep"),
    Category(21, "cow", ("🐄",), 1.2),
    Category(22, "elephant", ("🐘",), 1.4),
    Category(24, "zebra", ("🦓",), 1.2),
    Category(25, "giraffe", ("🦒",), 1.35),
    Category(27, "backpack", ("🎒",), 0.9),
    Category(28, "umbrella", ("☂",), 1.05),
    Category(33, "suitcase", ("🧳",), 0.95),
    Category(37, "sports ball", ("⚽",), 0.75),
    Category(38, "kite", ("🪁",), 0.95),
    Category(41, "skateboard", ("🛹",), 0.9),
    Category(44, "bottle", ("🍾",), 0.9),
    Category(46, "wine glass", ("🍷",), 0.85, "wine glasses"),
    Category(47, "cup", ("☕",), 0.8),
    Category(48, "fork", (FORK,), 0.85),
    Category(49, "knife", ("🔪",), 0.85, "knives"),
    Category(50, "spoon", ("🥄",), 0.8),
    Category(51, "bowl", ("🥣",), 0.95),
    Category(52, "banana", ("🍌",), 0.8),
    Category(53, "apple", ("🍎", "🍏"), 0.75),
    Category(57, "carrot", ("🥕",), 0.8),
    Category(59, "pizza", ("🍕",), 0.95),
    Category(61, "cake", ("🎂", "🍰"), 0.95),
    Category(62, "chair", ("🪑",), 1.1),
    Category(63, "couch", ("🛋",), 1.35, "couches"),
    Category(64, "potted plant", ("🪴",), 1.0),
    Category(65, "bed", ("🛏",), 1.4),
    Category(70, "toilet", ("🚽",), 1.1),
    Category(72, "tv", ("📺",), 1.15),
    Category(73, "laptop", ("💻",), 1.05),
    Category(76, "keyboard", ("⌨",), 1.0),
    Category(77, "cell phone", ("📱",), 0.75),
    Category(84, "book", ("📕", "📗", "📘"), 0.8),
    Category(85, "clock", ("⏰",), 0.85),
    Category(88, "teddy bear", ("🧸",), 0.9),
    Category(90, "toothbrush", ("🪥",), 0.8, "toothbrushes"),
)
BY_NAME = {category.name: category for category in CATEGORIES}
NAMES = tuple(BY_NAME)
INDEX = {name: index for index, name in enumerate(NAMES)}
GROUP_CATEGORIES = frozenset({"person", "car", "sheep", "cow", "bird", "book"})
"""Categories that often occur in groups."""


@dataclass(frozen=True)
class SceneType:
    """A type of scene: objects that are nearly always, often or sometimes in it, and its background colours."""

    core: tuple[str, ...]
    secondary: tuple[str, ...]
    occasional: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


def _make_scene_type(core: str, secondary: str, occasional: str, *palette: tuple[int, int, int]) -> SceneType:
    return SceneType(tuple(core.split(", ")), tuple(secondary.split(", ")), tuple(occasional.split(", ")), palette)


PLACES = {
    "kitchen": _make_scene_type(
        "bowl, cup, knife, bottle",
        "spoon, banana, apple, carrot",
        "fork, person, potted plant, clock, wine glass, cat",
        *((222, 205, 170), (200, 190, 180), (240, 230, 205)),
    ),
    "dining room": _make_scene_type(
        "fork, spoon, pizza, chair",
        "wine glass, cake, knife, cup, person",
        "bottle, bowl, potted plant, clock, apple",
        *((190, 150, 110), (225, 200, 180), (160, 120, 90)),
    ),
    "city street": _make_scene_type(
        "car, traffic light, person, bus",
        "truck, bicycle, dog, backpack",
        "umbrella, bird, skateboard, cell phone, suitcase",
        *((150, 150, 155), (120, 125, 135), (180, 185, 190)),
    ),
    "farm": _make_scene_type(
        "cow, sheep, horse, dog",
        "person, bird, truck, cat",
        "apple, bicycle, carrot, car",
        *((140, 185, 90), (170, 200, 110), (110, 150, 70)),
    ),
    "savanna": _make_scene_type(
        "elephant, zebra, giraffe, bird",
        "person, horse, car",
        "truck, backpack, cow",
        *((215, 190, 110), (200, 170, 90), (230, 210, 150)),
    ),
    "living room": _make_scene_type(
        "couch, tv, potted plant, book",
        "clock, cat, chair, person, cup",
        "dog, teddy bear, cell phone, laptop, wine glass",
        *((205, 185, 200), (225, 210, 190), (180, 160, 150)),
    ),
    "office": _make_scene_type(
        "laptop, keyboard, chair, cup",
        "cell phone, book, clock, person",
        "backpack, potted plant, bottle, tv, banana",
        *((210, 215, 220), (190, 200, 210), (230, 230, 235)),
    ),
    "bedroom": _make_scene_type(
        "bed, teddy bear, clock, book",
        "cat, cell phone, laptop, chair",
        "tv, person, dog, potted plant, backpack",
        *((200, 190, 220), (220, 205, 225), (180, 180, 210)),
    ),
    "bathroom": _make_scene_type(
        "toilet, toothbrush, bottle, cup",
        "potted plant, clock, cat, person",
        "book, chair, cell phone, teddy bear",
        *((190, 225, 230), (215, 235, 240), (170, 205, 215)),
    ),
    "beach": _make_scene_type(
        "umbrella, boat, person, kite",
        "bird, dog, sports ball, chair",
        "bottle, backpack, cell phone, book, wine glass",
        *((235, 215, 160), (120, 195, 225), (245, 230, 190)),
    ),
    "station": _make_scene_type(
        "train, suitcase, person, clock",
        "backpack, bus, umbrella, cell phone",
        "bicycle, laptop, cup, book, bird",
        *((175, 175, 185), (150, 160, 180), (200, 195, 190)),
    ),
    "park": _make_scene_type(
        "dog, bicycle, sports ball, person",
        "kite, bird, skateboard, backpack",
        "umbrella, bottle, boat, apple, cake",
        *((120, 190, 100), (150, 205, 130), (100, 165, 85)),
    ),
}

COOCCURRENCES = (
    ("fork", "knife", 0.6),
    ("knife", "fork", 0.4),
    ("spoon", "bowl", 0.4),
    ("keyboard", "cell phone", 0.4),
    ("bus", "car", 0.5),
    ("couch", "tv", 0.4),
    ("toilet", "toothbrush", 0.4),
    ("suitcase", "person", 0.5),
    ("train", "suitcase", 0.4),
    ("zebra", "giraffe", 0.4),
    ("bed", "teddy bear", 0.4),
    ("cake", "fork", 0.5),
    ("skateboard", "person", 0.5),
)
"""(a, b, p): if a scene contains a, b is added with probability p. A language prior can learn this."""
