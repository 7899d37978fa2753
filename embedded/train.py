"""Makes everything that ships in this folder, from nothing: `python -m embedded.train`.

Scenes, tokenizers, vision beside language, both joined, finished and taught objects and details beside the matcher, the
shipped folders, the figures. A stage that is done is skipped and one that was interrupted goes on from its last
checkpoint. With `--finished FOLDER` only objects and details are taught, to the model in FOLDER/model.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.album import Album, make_album, open_album
from embedded.annotations import write_scenes
from embedded.details_stage import train_details
from embedded.evaluate import Asker, captions, chair, details, pope
from embedded.finish_stage import train_finish
from embedded.heat import heat_figures
from embedded.joint_stage import Joint, assembled, join, new_joint, separated, train_joint
from embedded.language_stage import train_language
from embedded.matcher import make_matcher_tokenizer
from embedded.matcher_stage import ship_matcher, train_matcher
from embedded.object_stage import Objects, train_objects
from embedded.picture import FAR, NEAR
from embedded.samples import write_samples
from embedded.scene import SHIFTED, TRAINING
from embedded.shipping import ship_model
from embedded.tokenizer import make_tokenizer
from embedded.training import pick_device
from embedded.vision_stage import Vision, recognition, train_vision

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """How much of everything."""

    near_pictures: int = 32_000
    far_pictures: int = 24_000
    tune_pictures: int = 600
    report_pictures: int = 300
    vision_steps: int = 1762
    vision_batch: int = 32
    language_steps: int = 636
    language_batch: int = 8
    joint_steps: int = 2000
    joint_batch: int = 8
    finish_steps: int = 2400
    finish_batch: int = 8
    object_steps: int = 2600
    object_batch: int = 32
    details_steps: int = 800
    details_batch: int = 8
    matcher_steps: int = 1500
    matcher_batch: int = 12


TINY = Recipe(40, 20, 8, 8, *[2] * 14)
"""A few steps of everything: shows that the program runs, trains nothing."""


@dataclass(frozen=True)
class Workshop:
    """The stages, each a function of what lies in the work folder, so that each can run in a process of its own."""

    work: Path
    out: Path
    recipe: Recipe
    finished: Path | None = None
    """Holds the model/ and matcher/ that all stages but the last two have made before."""

    def album(self, name: str) -> Album:
        return open_album(self.work / "albums" / name)

    def draw(self) -> None:
        recipe, albums, processes = self.recipe, self.work / "albums", max(1, os.cpu_count() or 1)
        if not self.finished:
            make_album(albums / "near", recipe.near_pictures, 1, TRAINING, NEAR, processes)
        make_album(albums / "far", recipe.far_pictures, 4, TRAINING, FAR, processes)
        make_album(albums / "tune", recipe.tune_pictures, 2, SHIFTED, FAR, processes)
        make_album(albums / "report", recipe.report_pictures, 3, SHIFTED, FAR, processes)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.finished / "model" if self.finished else self.work / "tokenizer"
        if not folder.exists():
            make_tokenizer(self.album("near")).save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def matcher_tokenizer(self) -> BertTokenizer:
        folder = self.work / "matcher-tokenizer"
        if not folder.exists():
            make_matcher_tokenizer(self.album("near")).save_pretrained(folder)
        return BertTokenizer.from_pretrained(folder)

    def vision(self) -> Vision:
        steps, batch = self.recipe.vision_steps, self.recipe.vision_batch
        return train_vision(self.work, self.album("near"), self.album("tune"), steps=steps, size=batch)

    def language(self) -> None:
        steps, batch = self.recipe.language_steps, self.recipe.language_batch
        train_language(self.work, self.album("near"), self.tokenizer(), steps=steps, size=batch)

    def joint(self) -> Joint:
        recipe, tokenizer, album = self.recipe, self.tokenizer(), self.album("near")
        if (self.work / "joint.pt").exists():
            start = new_joint(tokenizer)
        else:
            language = train_language(
                self.work, album, tokenizer, steps=recipe.language_steps, size=recipe.language_batch
            )
            start = join(self.vision().cpu(), language.cpu(), tokenizer)
        steps, batch = recipe.joint_steps, recipe.joint_batch
        return train_joint(self.work, start, album, self.album("tune"), tokenizer, steps=steps, size=batch)

    def finish(self) -> Joint:
        recipe, tokenizer = self.recipe, self.tokenizer()
        start = new_joint(tokenizer) if (self.work / "finish.pt").exists() else self.joint().cpu()
        steps, batch = recipe.finish_steps, recipe.finish_batch
        return train_finish(self.work, start, self.album("far"), self.album("tune"), tokenizer, steps=steps, size=batch)

    def objects(self) -> tuple[Joint, Objects]:
        recipe, tokenizer = self.recipe, self.tokenizer()
        if self.finished:
            model = LlavaForConditionalGeneration.from_pretrained(self.finished / "model", dtype=torch.float32)
            joint = separated(model, tokenizer)
        else:
            joint = self.finish().cpu()
        steps, batch = recipe.object_steps, recipe.object_batch
        far, tune = self.album("far"), self.album("tune")
        return joint, train_objects(self.work, joint.vision, far, tune, steps=steps, size=batch)

    def details(self) -> Joint:
        recipe, tokenizer = self.recipe, self.tokenizer()
        if (self.work / "details.pt").exists():
            joint = new_joint(tokenizer)
            objects = Objects(joint.vision)
        else:
            joint, objects = self.objects()
        steps, batch = recipe.details_steps, recipe.details_batch
        far, tune = self.album("far"), self.album("tune")
        return train_details(self.work, joint, objects, far, tune, tokenizer, steps=steps, size=batch)

    def matcher(self) -> None:
        tokenizer, recipe = self.matcher_tokenizer(), self.recipe
        vision, album = self.vision(), self.album("near")
        matcher = train_matcher(
            self.work, vision, album, tokenizer, steps=recipe.matcher_steps, size=recipe.matcher_batch
        )
        ship_matcher(matcher, tokenizer, self.out / "matcher")

    def ship(self) -> None:
        model = assembled(self.details(), self.tokenizer())
        ship_model(model, self.tokenizer(), self.out / "model")
        write_scenes(self.out / "scenes", self.album("report"))
        write_samples(self.out / "samples")

    def measure(self, name: str = "report") -> dict[str, Any]:
        """The figures of the model card, on scenes that neither training nor tuning has seen."""
        album, tokenizer, joint = self.album(name), self.tokenizer(), self.details()
        seen = recognition(joint.vision.cpu(), album, len(album))
        asker = Asker(assembled(joint, tokenizer).to(pick_device()), tokenizer)
        return {
            "tower": seen,
            "pope": pope(asker, album),
            "chair": chair(captions(asker, album, len(album)), album),
            "details": details(asker, album, len(album)),
            "matcher": heat_figures((self.finished or self.out) / "matcher", album),
        }


def beside(*stages: Callable[[], object]) -> None:
    """Runs stages at the same time, one process and its share of the cores each; one after the other on a GPU."""
    if pick_device().type == "cuda" or (os.cpu_count() or 1) < len(stages):
        for stage in stages:
            stage()
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // len(stages))
    processes = [context.Process(target=_run, args=(stage, threads)) for stage in stages]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a stage has failed; its error is above")


def _run(stage: Callable[[], object], threads: int) -> None:
    torch.set_num_threads(threads)
    stage()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m embedded.train", description=__doc__)
    parser.add_argument("--work", type=Path, help="where pictures and checkpoints are kept, instead of .work/")
    parser.add_argument("--out", type=Path, help="where model/, matcher/, scenes/ and samples/ are written")
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps of everything, in .work/tiny/, to see that it runs"
    )
    parser.add_argument(
        "--finished", type=Path, metavar="FOLDER", help="make only the last two stages, from model/ in this folder"
    )
    workshop = workshop_of(parser.parse_args(arguments))
    workshop.draw()
    if workshop.finished:
        workshop.details()
    else:
        workshop.tokenizer()
        workshop.matcher_tokenizer()
        beside(workshop.vision, workshop.language)
        beside(workshop.details, workshop.matcher)
    workshop.ship()
    figures = json.dumps(workshop.measure(), indent=2)
    (workshop.work / "figures.json").write_text(figures)
    print(figures)


def workshop_of(options: argparse.Namespace) -> Workshop:
    """A tiny one works and ships beside what is made in earnest, unless it is told to do so elsewhere."""
    kept = HERE / ".work" / "tiny" if options.tiny else HERE / ".work"
    out = kept / "out" if options.tiny else HERE
    recipe = TINY if options.tiny else Recipe()
    return Workshop(options.work or kept, options.out or out, recipe, options.finished)


if __name__ == "__main__":
    main()
