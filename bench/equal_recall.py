"""CHAIR_i at equal recall: captions of the held-out scenes under each strategy, against those of `auto`.

    python -m bench.equal_recall --write

A strategy that says less invents less. So captions are also compared after as many mentions as give both strategies the
recall of the one that has less of it: of every caption the first m mentions count, between two m linearly.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from bench.models import EMBEDDED
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.registry import build
from decoding.stack import Run, collect
from embedded.evaluate import mentions

STRATEGIES = ("plain", "vcd", "icd", "m3id", "agla", "vhr", "code", "vdgd", "auto")
OURS = "auto"
MOST = 12  # mentions in a caption
RESAMPLES = 1000
PAGE = EMBEDDED.parent / "docs" / "strategies.md"

Curve = NDArray[np.float64]  # [MOST, 2] recall and CHAIR_i after so many mentions, in percent


@dataclass(frozen=True)
class Scene:
    picture: Picture
    things: frozenset[str]


@dataclass(frozen=True)
class Said:
    counts: NDArray[np.int64]  # [scenes, MOST, 3] found, invented, mentioned among the first mentions
    present: NDArray[np.int64]  # [scenes]
    rows_per_token: float

    def curve(self, scenes: NDArray[np.int64] | slice = slice(None)) -> Curve:
        found, invented, mentioned = self.counts[scenes].sum(0).T
        return 100 * np.stack([found / self.present[scenes].sum(), invented / mentioned], 1)


def scenes() -> list[Scene]:
    told = json.loads((EMBEDDED / "scenes" / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in told["categories"]}
    things: dict[int, set[str]] = {image["id"]: set() for image in told["images"]}
    for annotation in told["annotations"]:
        things[annotation["image_id"]].add(names[annotation["category_id"]])
    folder = EMBEDDED / "scenes" / "images"
    return [
        Scene(Picture(Image.open(folder / image["file_name"]).convert("RGB")), frozenset(things[image["id"]]))
        for image in told["images"]
    ]


async def said_by(engine: HFEngine, strategy: str, seen: Sequence[Scene]) -> Said:
    room, passes, steps = asyncio.Semaphore(40), 0, 0

    async def caption(scene: Scene) -> list[list[int]]:
        nonlocal passes, steps
        prompt = Prompt.of("Please describe this image in detail.", scene.picture)
        async with room, Run(build(strategy, {}), engine) as run:
            answer = await collect(run.stream(await run.resolve(Ask(prompt, Sampling(max_tokens=128)))))
        passes += answer.end.usage.forward_passes + run.spent.forward_passes
        steps += answer.end.usage.steps
        named = mentions(answer.text)
        firsts = [named[:most] for most in range(1, MOST + 1)]
        return [
            [len(set(some) & scene.things), sum(name not in scene.things for name in some), len(some)]
            for some in firsts
        ]

    counts = np.array(await asyncio.gather(*(caption(scene) for scene in seen)))
    return Said(counts, np.array([len(scene.things) for scene in seen]), passes / steps)


def at(curve: Curve, recall: float) -> float:
    return float(np.interp(recall, curve[:, 0], curve[:, 1]))


def gap(ours: Curve, theirs: Curve) -> float:
    recall = min(ours[-1, 0], theirs[-1, 0])
    return at(ours, recall) - at(theirs, recall)


def row(name: str, theirs: Said, ours: Said) -> str:
    random = np.random.default_rng(0)
    draws = [random.integers(len(theirs.present), size=len(theirs.present)) for _ in range(RESAMPLES)]
    spread = np.percentile([gap(ours.curve(scenes), theirs.curve(scenes)) for scenes in draws], [2.5, 97.5])
    recall, chair = theirs.curve()[-1]
    compared = (
        "" if name == OURS else f"{gap(ours.curve(), theirs.curve()):+.1f} ({spread[0]:+.1f} to {spread[1]:+.1f})"
    )
    return f"| `{name}` | {chair:.1f} | {recall:.1f} | {theirs.rows_per_token:.2f} | {compared} |"


async def measure(strategies: Sequence[str]) -> str:
    model, matcher = str(EMBEDDED / "model"), str(EMBEDDED / "matcher")
    engine = HFEngine(HFSettings(model, matcher=matcher, device="cpu", max_rows=128, max_waiting=4096))
    await engine.start()
    seen = scenes()
    try:
        said = {name: await said_by(engine, name, seen) for name in track(strategies)}
    finally:
        await engine.close()
    head = [
        "| strategy | CHAIR_i | recall | rows a token | `auto` at equal recall |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(row(name, each, said[OURS]) for name, each in said.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/strategies.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = asyncio.run(measure(STRATEGIES))
    print(table)
    if options.write:
        begin, end = "<!-- equal recall -->", "<!-- /equal recall -->"
        before, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
