"""Draw scenes that no part of this repository was trained or tuned on, as a folder for `onlyseen-eval run --data`.

    python -m bench.quality.fresh_scenes --seed 914407 --scenes 100 --out runs/fresh/scenes

The scenes have the prior and the view of the held-out ones.
"""

import argparse
from pathlib import Path

from embedded.data.coco_annotations import write_scenes
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="seed of the scenes")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    options = parser.parse_args()
    dataset = options.out.with_name(f"{options.out.name}-dataset")
    write_scenes(options.out, make_dataset(dataset, options.scenes, options.seed, SHIFTED_PRIOR, FAR_VIEW, 1))


if __name__ == "__main__":
    main()
