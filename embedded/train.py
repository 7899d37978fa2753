"""Train and export everything that ships in this folder: `python -m embedded.train`.

The stages are scenes, tokenizers, vision beside language, matcher, joint, finish, objects, details, export and
evaluation. From the matcher on, two processes share each step. A completed stage is skipped. An interrupted stage
resumes from its last checkpoint. `--finished FOLDER` runs only objects and details, on the model in FOLDER/model.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import BertTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.coco_annotations import write_scenes
from embedded.data.renderer import FAR_VIEW, NEAR_VIEW
from embedded.data.samples import write_samples
from embedded.data.scene_dataset import SceneDataset, make_dataset, open_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR, TRAINING_PRIOR
from embedded.evaluation.benchmarks import (
    AnswerGenerator,
    evaluate_chair,
    evaluate_details,
    evaluate_pope,
    generate_captions,
)
from embedded.evaluation.grad_cam import evaluate_matcher
from embedded.evaluation.robustness import evaluate_robustness
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.details_stage import train_details
from embedded.training.export import export_model
from embedded.training.finish_stage import train_finish
from embedded.training.joint_stage import (
    JointModel,
    assemble_llava,
    build_joint_model,
    join_models,
    split_llava,
    train_joint,
)
from embedded.training.language_stage import LanguageModel, train_language
from embedded.training.matcher_model import train_matcher_tokenizer
from embedded.training.matcher_stage import export_matcher, train_matcher
from embedded.training.object_stage import ObjectHeads, train_objects
from embedded.training.tokenizer import train_tokenizer
from embedded.training.trainer import SHARDS, select_device
from embedded.training.vision_stage import VisionModel, measure_recognition, train_vision

HERE = Path(__file__).parent


@dataclass(frozen=True)
class TrainingConfig:
    """Scenes, steps, batch sizes and augmentation of all stages."""

    near_scenes: int = 32_000
    far_scenes: int = 24_000
    tuning_scenes: int = 600
    report_scenes: int = 300
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
    matcher_batch: int = 16
    augmentation: Augmentation = field(default=FULL_AUGMENTATION, kw_only=True)


TINY_CONFIG = TrainingConfig(40, 20, 8, 8, *[2] * 14)
"""A few steps of every stage, to check that the program runs."""


@dataclass(frozen=True)
class TrainingPipeline:
    """The stages of training.

    Each stage reads its inputs from the work folder, so a stage can run in a process of its own.

    Attributes:
        work_dir: Folder of datasets, tokenizers and checkpoints.
        out_dir: Folder that `export` writes to.
        config: Scenes, steps and batch sizes.
        base_dir: Folder with `model/` and `matcher/` of an earlier run. If set, only objects and details are trained.
    """

    work_dir: Path
    out_dir: Path
    config: TrainingConfig
    base_dir: Path | None = None

    def open_dataset(self, name: str) -> SceneDataset:
        """Open one of the datasets that `draw_datasets` has drawn."""
        return open_dataset(self.work_dir / "datasets" / name)

    def draw_datasets(self) -> None:
        """Draw the scenes for training, tuning and reporting."""
        config, folder, processes = self.config, self.work_dir / "datasets", max(1, os.cpu_count() or 1)
        if not self.base_dir:
            make_dataset(folder / "near", config.near_scenes, 1, TRAINING_PRIOR, NEAR_VIEW, processes)
        make_dataset(folder / "far", config.far_scenes, 4, TRAINING_PRIOR, FAR_VIEW, processes)
        make_dataset(folder / "tune", config.tuning_scenes, 2, SHIFTED_PRIOR, FAR_VIEW, processes)
        make_dataset(folder / "report", config.report_scenes, 3, SHIFTED_PRIOR, FAR_VIEW, processes)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer of the language model; train it if it does not exist."""
        folder = self.base_dir / "model" if self.base_dir else self.work_dir / "tokenizer"
        if not folder.exists():
            train_tokenizer(self.open_dataset("near")).save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def build_matcher_tokenizer(self) -> BertTokenizer:
        """Load the tokenizer of the matcher; train it if it does not exist."""
        folder = self.work_dir / "matcher-tokenizer"
        if not folder.exists():
            train_matcher_tokenizer(self.open_dataset("near")).save_pretrained(folder)
        return BertTokenizer.from_pretrained(folder)

    def run_vision(self) -> VisionModel:
        """Train or load the vision model."""
        config = self.config
        return train_vision(
            self.work_dir,
            self.open_dataset("near"),
            self.open_dataset("tune"),
            steps=config.vision_steps,
            batch_size=config.vision_batch,
            augmentation=config.augmentation,
        )

    def run_language(self) -> LanguageModel:
        """Train or load the language model, which reads synthetic image tokens."""
        config = self.config
        return train_language(
            self.work_dir,
            self.open_dataset("near"),
            self.build_tokenizer(),
            steps=config.language_steps,
            batch_size=config.language_batch,
            augmentation=config.augmentation,
        )

    def run_joint(self) -> JointModel:
        """Train or load the joined model."""
        config, tokenizer = self.config, self.build_tokenizer()
        if (self.work_dir / "joint.pt").exists():
            start = build_joint_model(tokenizer)
        else:
            language = self.run_language().cpu()
            start = join_models(self.run_vision().cpu(), language, tokenizer)
        return train_joint(
            self.work_dir,
            start,
            self.open_dataset("near"),
            self.open_dataset("tune"),
            tokenizer,
            steps=config.joint_steps,
            batch_size=config.joint_batch,
            augmentation=config.augmentation,
        )

    def run_finish(self) -> JointModel:
        """Train or load the model on far scenes."""
        config, tokenizer = self.config, self.build_tokenizer()
        start = build_joint_model(tokenizer) if (self.work_dir / "finish.pt").exists() else self.run_joint().cpu()
        return train_finish(
            self.work_dir,
            start,
            self.open_dataset("far"),
            self.open_dataset("tune"),
            tokenizer,
            steps=config.finish_steps,
            batch_size=config.finish_batch,
            augmentation=config.augmentation,
        )

    def run_objects(self) -> tuple[JointModel, ObjectHeads]:
        """Train or load the vision tower on single objects, with its heads."""
        config, tokenizer = self.config, self.build_tokenizer()
        if self.base_dir:
            model = LlavaForConditionalGeneration.from_pretrained(self.base_dir / "model", dtype=torch.float32)
            joint = split_llava(model, tokenizer)
        else:
            joint = self.run_finish().cpu()
        return joint, train_objects(
            self.work_dir,
            joint.vision,
            self.open_dataset("far"),
            self.open_dataset("tune"),
            steps=config.object_steps,
            batch_size=config.object_batch,
            augmentation=config.augmentation,
        )

    def run_details(self) -> JointModel:
        """Train or load the model on questions about number, position and colour."""
        config, tokenizer = self.config, self.build_tokenizer()
        if (self.work_dir / "details.pt").exists():
            joint = build_joint_model(tokenizer)
            object_heads = ObjectHeads(joint.vision)
        else:
            joint, object_heads = self.run_objects()
        tuning_dataset = self.open_dataset("tune")

        def measure_detail_accuracy(model: LlavaForConditionalGeneration) -> dict[str, float]:
            found = evaluate_details(AnswerGenerator(model, tokenizer), tuning_dataset, 60)
            return {kind: figures["accuracy"] for kind, figures in found.items()}

        return train_details(
            self.work_dir,
            joint,
            object_heads,
            self.open_dataset("far"),
            tokenizer,
            measure_detail_accuracy,
            steps=config.details_steps,
            batch_size=config.details_batch,
            augmentation=config.augmentation,
        )

    def run_matcher(self) -> None:
        """Train the matcher and export it."""
        tokenizer, config = self.build_matcher_tokenizer(), self.config
        vision, dataset = self.run_vision(), self.open_dataset("near")
        matcher = train_matcher(
            self.work_dir,
            vision,
            dataset,
            tokenizer,
            steps=config.matcher_steps,
            batch_size=config.matcher_batch,
            augmentation=config.augmentation,
        )
        if not dist.is_initialized() or not dist.get_rank():
            export_matcher(matcher, tokenizer, self.out_dir / "matcher")

    def run_matcher_and_details(self) -> None:
        """Train the matcher, then the model."""
        self.run_matcher()
        self.run_details()

    def export(self) -> None:
        """Write `model/`, `scenes/` and `samples/`."""
        model = assemble_llava(self.run_details(), self.build_tokenizer())
        export_model(model, self.build_tokenizer(), self.out_dir / "model")
        write_scenes(self.out_dir / "scenes", self.open_dataset("report"))
        write_samples(self.out_dir / "samples")

    def evaluate(self, name: str = "report") -> dict[str, Any]:
        """Measure the figures of the model card, by default on scenes that neither training nor tuning uses."""
        dataset, tokenizer, joint = self.open_dataset(name), self.build_tokenizer(), self.run_details()
        tower_figures = measure_recognition(joint.vision.cpu(), dataset, len(dataset))
        generator = AnswerGenerator(assemble_llava(joint, tokenizer).to(select_device()), tokenizer)
        return {
            "tower": tower_figures,
            "pope": evaluate_pope(generator, dataset),
            "chair": evaluate_chair(generate_captions(generator, dataset, len(dataset)), dataset),
            "details": evaluate_details(generator, dataset, len(dataset)),
            "robustness": evaluate_robustness(generator, dataset, len(dataset)),
            "matcher": evaluate_matcher((self.base_dir or self.out_dir) / "matcher", dataset),
        }


def run_parallel(*stages: Callable[[], object]) -> None:
    """Run stages at the same time, each in a process with its share of the cores; on a GPU, one after the other.

    A failed stage ends the program.
    """
    if select_device().type == "cuda" or (os.cpu_count() or 1) < len(stages):
        for stage in stages:
            stage()
        return
    threads = max(1, (os.cpu_count() or 1) // len(stages))
    _run_processes([(_run_stage, (stage, threads)) for stage in stages])


def run_sharded(stage: Callable[[], object]) -> None:
    """Run a stage in `SHARDS` processes that average their gradients; on a GPU or one core, in this process.

    A failed process ends the program.
    """
    if select_device().type == "cuda" or (os.cpu_count() or 1) < SHARDS:
        stage()
        return
    threads = max(1, (os.cpu_count() or 1) // SHARDS)
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        _run_processes([(_run_rank, (stage, threads, store, rank)) for rank in range(SHARDS)])


def _run_processes(calls: list[tuple[Callable[..., None], tuple[object, ...]]]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=function, args=values) for function, values in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("A stage failed; its error is printed above.")


def _run_stage(stage: Callable[[], object], threads: int) -> None:
    torch.set_num_threads(threads)
    stage()


def _run_rank(stage: Callable[[], object], threads: int, store: str, rank: int) -> None:
    torch.set_num_threads(threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of a host need not have an address
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SHARDS)
    stage()
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Run all stages and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m embedded.train", description=__doc__)
    parser.add_argument("--work", type=Path, help="folder of datasets and checkpoints, instead of .work/")
    parser.add_argument("--out", type=Path, help="folder for model/, matcher/, scenes/ and samples/")
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps of every stage, in .work/tiny/, to check that it runs"
    )
    parser.add_argument(
        "--finished", type=Path, metavar="FOLDER", help="run only objects and details, on model/ in this folder"
    )
    pipeline = build_pipeline(parser.parse_args(arguments))
    pipeline.draw_datasets()
    if pipeline.base_dir:
        run_sharded(pipeline.run_details)
    else:
        pipeline.build_tokenizer()
        pipeline.build_matcher_tokenizer()
        run_parallel(pipeline.run_vision, pipeline.run_language)
        run_sharded(pipeline.run_matcher_and_details)
    pipeline.export()
    figures = json.dumps(pipeline.evaluate(), indent=2)
    (pipeline.work_dir / "figures.json").write_text(figures)
    print(figures)


def build_pipeline(options: argparse.Namespace) -> TrainingPipeline:
    """Build the pipeline from the options; a tiny one works and exports in a folder of its own by default.

    Returns:
        The pipeline.
    """
    default_work_dir = HERE / ".work" / "tiny" if options.tiny else HERE / ".work"
    default_out_dir = default_work_dir / "out" if options.tiny else HERE
    config = TINY_CONFIG if options.tiny else TrainingConfig()
    return TrainingPipeline(options.work or default_work_dir, options.out or default_out_dir, config, options.finished)


if __name__ == "__main__":
    main()
