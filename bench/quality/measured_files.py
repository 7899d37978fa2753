r"""Measure what some strategies need to know of the embedded model, on scenes that nothing was trained or tuned on.

    python -m bench.quality.measured_files --seed 660411 --scenes 200 --out runs/measured
    python -m server --steering-vectors runs/measured/vectors \
      --attention-statistics runs/measured/statistics.safetensors

`vti` and `steer` read directions from hallucinated to true captions, `adaiat` reads attention statistics. A
hallucinated caption is a reference caption with a sentence about a likely absent object after its first sentence, so
that both end with the same words. The statistics are measured on the model's own captions, labelled by the official
extractor of CHAIR. `steer` gets the directions of `vti`, because its vectors are free.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.harness.models import EMBEDDED
from bench.harness.server_process import ServerProcess
from bench.quality.study_spec import MAX_TOKENS_FLAGS
from embedded.data.categories import BY_NAME
from embedded.data.coco_annotations import build_image_file_name, write_scenes
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import SceneDataset, make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR, sample_likely_absent
from embedded.data.text_templates import make_caption
from eval.benchmarks.chair.task import PROMPT

PAIRS = 100  # the official code of VTI has 50


def write_pairs(file: Path, dataset: SceneDataset, count: int) -> None:
    """Write pairs of a true and a hallucinated caption, one for each scene that has a caption of several sentences."""
    lines: list[str] = []
    for index in range(len(dataset)):
        rng, scene = np.random.default_rng([7, index]), dataset.get_scene(index)
        absent = sample_likely_absent(rng, scene.place, {item.name for item in scene.objects} | set(scene.hidden))
        first, *others = make_caption(rng, scene, invention_rate=0, omission_rate=0).split(". ")
        if absent and others and len(lines) < count:
            invented = f"There is also {BY_NAME[absent].with_article}"
            pair = {
                "image_id": build_image_file_name(index + 1),
                "caption": ". ".join([first, *others]),
                "hallucinated_caption": ". ".join([first, invented, *others]),
            }
            lines.append(json.dumps(pair) + "\n")
    file.write_text("".join(lines))


def write_labelled_captions(file: Path, scenes: Path) -> None:
    """Write the model's own greedy captions of the scenes, with their real and hallucinated mentions."""
    runs, captions = file.with_name("captions-run"), file.with_name("captions")
    with ServerProcess() as server:
        run_module(
            *("eval", "run", "chair", "--base-url", server.url, "--data", scenes, "--strategies", "plain"),
            *("--out", runs, *MAX_TOKENS_FLAGS),
        )
    run_module("eval", "export", runs, "--strategy", "plain", "--out", captions)
    run_module(
        *("eval", "score", "chair", "--captions", captions / "captions.jsonl", "--annotations", scenes),
        *("--variant", "original", "--per-caption", file),
    )


def run_module(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="seed of the scenes")
    parser.add_argument("--scenes", type=int, default=200, help="number of scenes")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    options = parser.parse_args()
    scenes, vectors, model = options.out / "scenes", options.out / "vectors", EMBEDDED / "model"
    vectors.mkdir(parents=True, exist_ok=True)
    dataset = make_dataset(options.out / "dataset", options.scenes, options.seed, SHIFTED_PRIOR, FAR_VIEW, 1)
    write_scenes(scenes, dataset)
    pairs, labelled = options.out / "pairs.jsonl", options.out / "each.jsonl"
    write_pairs(pairs, dataset, PAIRS)
    measured = "--model", model, "--images", scenes / "images", "--prompt", PROMPT
    run_module("onlyseen", "steering-vectors", *measured, "--pairs", pairs, "--out", vectors / "vti.safetensors")
    shutil.copy(vectors / "vti.safetensors", vectors / "steer.safetensors")
    write_labelled_captions(labelled, scenes)
    statistics = options.out / "statistics.safetensors"
    run_module("onlyseen", "attention-statistics", *measured, "--captions", labelled, "--out", statistics)


if __name__ == "__main__":
    main()
