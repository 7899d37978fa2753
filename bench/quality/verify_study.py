"""Effect of `verify` and `check` on fresh scenes.

    python -m bench.quality.verify_study --seed 801223 --scenes 400 --write
    python -m bench.quality.verify_study --seed 414202 --scenes 200 --tune --write

The seed draws scenes with the prior and the view of the held-out ones. The captions are scored by the official
extractor of CHAIR (variant `original`). Times are measured in turn in one run, and each ratio is to plain decoding in
the same round. Every time starts with an empty prefix cache. `--write` stores the figures in
bench/results/verify_study.json. `--tune` compares values of `debias`, `views`, `threshold` and `tries` on scenes that
are not reported. It stores its figures in bench/results/verify_tuning.json.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from PIL import Image

from bench.harness.docs_page import RESULTS, describe_machine
from bench.harness.models import EMBEDDED
from bench.quality.claim_signals import label_mentions, list_claims, summarize_interval
from decoding.claims.claim_check import ClaimCheck
from decoding.engine import Engine
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.outputs import Answer, ClaimAction, Token
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams
from embedded.data.coco_annotations import build_image_file_name, write_scenes
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR
from eval.analysis.detection import LabelledMention, summarize_mentions
from eval.benchmarks.chair.ground_truth import load_annotations
from eval.benchmarks.chair.object_extraction import build_extractor
from eval.benchmarks.chair.score import CaptionScore
from eval.benchmarks.chair.task import METRICS, PROMPT
from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from eval.core.metrics import Floats, Metric, RatioMetrics, divide_or_nan
from eval.core.statistics import Bootstrap, mcnemar_test, percentile_intervals, permutation_p_values

GREEDY = ("plain", "vhr", "verify", "verify+vhr")
SAMPLED = ("plain", "verify")
SEEDS = (0, 1, 2)
MAX_TOKENS = 128
CONCURRENCY = 16  # captions at once, except where they are timed
TIMED_AT_ONCE = {1: 40, 8: 15}  # captions at once -> rounds
PARTS = ("greedy", "signals", "time", "sampled")
EXCHANGES = 20_000  # of each permutation test
# Values that `--tune` compares for `verify` and for the check. The other parameters have their defaults.
TUNED = {"threshold": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95), "tries": (0, 1, 2, 4), "views": (0, 1, 2, 3)}
TUNED_CHECK = {"debias": (0.0, 0.5, 1.0), "views": (0, 1, 2, 3)}
CHECKED = "plain with check"
RATIOS = RatioMetrics.from_metrics(
    (
        *METRICS[:3],  # CHAIR_s, CHAIR_i, recall
        # A caption that repeats a real object has a lower CHAIR_i, so objects are also counted once.
        Metric("chair_i_distinct", "CHAIR_i, distinct", {"distinct_hallucinated": 1}, {"distinct": 1}, better="lower"),
        Metric("repetitive", "Repetitive", {"repetitive": 1}, {"n": 1}, better="lower"),
    )
)
ACTIONS: tuple[ClaimAction, ...] = get_args(ClaimAction)


@dataclass(frozen=True)
class Caption:
    """A caption and its cost.

    Attributes:
        answer: The caption.
        forward_passes: Forward passes of all requests.
        drafts: Requests for text.
        checks: Requests for the probability of a claim.
        seconds_to_first_text: Seconds until the first text.
    """

    answer: Answer
    forward_passes: int
    drafts: int
    checks: int
    seconds_to_first_text: float


class CountingEngine:
    """An engine that counts the requests of one caption."""

    def __init__(self, engine: HFEngine) -> None:
        self._engine = engine
        self.drafts = 0
        self.checks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Generate, as the engine does. A request for scored texts is a check."""
        self.checks += bool(request.scored_texts)
        self.drafts += not request.scored_texts
        return self._engine.generate(request)


async def describe(
    engine: HFEngine,
    strategy: str,
    image: ImageInput,
    seed: int | None = None,
    *,
    check: ClaimCheck | None = None,
    grounding: bool = False,
) -> Caption:
    """Describe an image.

    Args:
        engine: The engine.
        strategy: The strategies. `verify:threshold=0.7,tries=1` is `verify` with these parameters.
        image: The image.
        seed: Seed of sampling at temperature 1. None is greedy decoding.
        check: Also check the claims.
        grounding: Also measure grounding and log-probabilities.

    Returns:
        The caption.
    """
    temperature, top_logprobs = (0.0 if seed is None else 1.0), (0 if grounding else None)
    sampling = SamplingParams(MAX_TOKENS, temperature=temperature, seed=seed, top_logprobs=top_logprobs)
    name, _, options = strategy.partition(":")
    pairs = (option.split("=") for option in options.split(",") if option)
    parameters = {name: {key: json.loads(value) for key, value in pairs}} if options else {}
    counting, started_at, seconds_to_first_text = CountingEngine(engine), time.perf_counter(), 0.0

    async def time_first_text(stream: AsyncGenerator[Token, None]) -> AsyncGenerator[Token, None]:
        nonlocal seconds_to_first_text
        async with aclosing(stream):
            async for token in stream:
                if token.text and not seconds_to_first_text:
                    seconds_to_first_text = time.perf_counter() - started_at
                yield token

    async with StrategyRunner(build(name, parameters), cast(Engine, counting)) as runner:
        request = GenerateRequest(Prompt.from_text(PROMPT, image), sampling)
        outcome = await runner.resolve(request, grounding=grounding, check=check)
        answer = await collect_answer(time_first_text(runner.stream(outcome)))
        passes = runner.prior_usage.forward_passes + answer.finish.usage.forward_passes
        return Caption(answer, passes, counting.drafts, counting.checks, seconds_to_first_text)


async def describe_all(
    engine: HFEngine,
    strategy: str,
    images: Sequence[ImageInput],
    seed: int | None = None,
    *,
    check: ClaimCheck | None = None,
    grounding: bool = False,
) -> list[Caption]:
    """Describe all images, `CONCURRENCY` at once."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def describe_one(image: ImageInput) -> Caption:
        async with slots:
            return await describe(engine, strategy, image, seed, check=check, grounding=grounding)

    return list(await asyncio.gather(*map(describe_one, images)))


class SceneScorer:
    """Scores the captions of scenes that `write_scenes` has written."""

    def __init__(self, folder: Path, scenes: int) -> None:
        vocabulary = ObjectVocabulary.load(None)
        self._extract = build_extractor("original", vocabulary)
        ground_truth = load_annotations(folder, list(range(1, scenes + 1)), vocabulary).collect_nodes(self._extract)
        self._ground_truth = [ground_truth[number] for number in range(1, scenes + 1)]

    def score(self, texts: Sequence[str]) -> list[CaptionScore]:
        """Score one caption of each scene, in order."""
        return [
            CaptionScore(number, text, self._extract(text), self._ground_truth[number - 1])
            for number, text in enumerate(texts, 1)
        ]


def count_mentions(scores: Sequence[CaptionScore]) -> Floats:
    """Count the mentions of each caption.

    Args:
        scores: One caption of each scene.

    Returns:
        The counts that `RATIOS` needs, [scenes, counts].
    """
    nodes = [{mention.node for mention in score.objects.mentions} for score in scores]
    rows = [
        {
            "n": 1,
            "bad": bool(score.hallucinated),
            "hallucinated": len(score.hallucinated),
            "mentions": len(score.objects.mentions),
            "recalled": len(score.recalled),
            "present": len(score.ground_truth),
            "distinct": len(distinct),
            "distinct_hallucinated": len(distinct - score.ground_truth),
            "repetitive": len(distinct) < len(score.objects.mentions),
        }
        for score, distinct in zip(scores, nodes, strict=True)
    ]
    return np.array([[row[name] for name in RATIOS.count_names] for row in rows], float)


def compare_arm(counts: Floats, plain: Floats, draws: Bootstrap, *, is_single: bool) -> dict[str, Any]:
    """Compute the metrics of an arm and their differences to plain decoding.

    Args:
        counts: Counts of the arm, summed over seeds, [scenes, counts].
        plain: Those of plain decoding.
        draws: Resamples of the scenes.
        is_single: Whether each scene has one caption, so that McNemar's test applies to CHAIR_s.

    Returns:
        Metric -> value, interval, difference, interval of the difference, ratio to plain, its interval and p-value.
    """
    p_values = permutation_p_values(counts, plain, RATIOS, EXCHANGES)
    if is_single:
        bad = RATIOS.count_names.index("bad")
        p_values[0] = mcnemar_test(counts[:, bad] == 0, plain[:, bad] == 0).p
    ratios = percentile_intervals(
        divide_or_nan(RATIOS.compute(counts.sum(0)), RATIOS.compute(plain.sum(0))),
        divide_or_nan(RATIOS.compute(draws.weights @ counts), RATIOS.compute(draws.weights @ plain)),
    )
    rows = zip(
        RATIOS.metrics,
        draws.estimate(counts, RATIOS),
        draws.estimate_differences(counts, plain, RATIOS),
        ratios,
        p_values,
        strict=True,
    )
    return {
        metric.name: {
            **summarize_interval(value),
            "difference": summarize_interval(difference),
            "ratio": summarize_interval(ratio, 1),
            "p": round(p, 6),
        }
        for metric, value, difference, ratio, p in rows
    }


async def time_arms(engine: HFEngine, images: Sequence[ImageInput], concurrency: int) -> dict[str, Any]:
    """Time all arms in turn on the same images, each with an empty prefix cache.

    Args:
        engine: The engine.
        images: The images, `concurrency` for each round.
        concurrency: Captions at once.

    Returns:
        Arm -> median seconds of a caption, and median and quartiles of the ratio to plain decoding.
    """
    arms = (*GREEDY, CHECKED)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    seconds_to_first_text: dict[str, list[float]] = {arm: [] for arm in arms}
    for number, start in enumerate(range(0, len(images), concurrency)):
        batch = images[start : start + concurrency]
        for arm in arms[:: 1 if number % 2 else -1]:
            engine.worker.prefix_cache.clear()
            strategy, check = ("plain", ClaimCheck()) if arm == CHECKED else (arm, None)
            started_at = time.perf_counter()
            captions = await asyncio.gather(*(describe(engine, strategy, image, check=check) for image in batch))
            seconds[arm].append((time.perf_counter() - started_at) / len(batch))
            seconds_to_first_text[arm].append(statistics.mean(caption.seconds_to_first_text for caption in captions))
    return {
        arm: {
            "seconds": round(statistics.median(each), 4),
            "ratio": round(float(np.median(ratios := np.array(each) / seconds["plain"])), 3),
            "quartiles": [round(float(value), 3) for value in np.quantile(ratios, [0.25, 0.75])],
            "first_text_ratio": round(
                float(np.median(np.array(seconds_to_first_text[arm]) / seconds_to_first_text["plain"])), 3
            ),
            "rounds": len(each),
        }
        for arm, each in seconds.items()
    }


@asynccontextmanager
async def start_study(
    folder: Path, seed: int, scenes: int
) -> AsyncGenerator[tuple[HFEngine, list[ImageInput], SceneScorer], None]:
    """Draw scenes into a folder and start an engine with the embedded model."""
    write_scenes(folder, make_dataset(folder / "dataset", scenes, seed, SHIFTED_PRIOR, FAR_VIEW, processes=1))
    files = [folder / "images" / build_image_file_name(number) for number in range(1, scenes + 1)]
    images = [ImageInput(Image.open(file).convert("RGB")) for file in files]
    engine = HFEngine(HFSettings(str(EMBEDDED / "model"), matcher=str(EMBEDDED / "matcher"), device="cpu"))
    await engine.start()
    try:
        yield engine, images, SceneScorer(folder, scenes)
    finally:
        await engine.close()


async def tune(folder: Path, seed: int, scenes: int, save: Callable[[dict[str, Any]], None]) -> None:
    """Measure `verify` with each value of `TUNED`, and the check with each value of `TUNED_CHECK`."""
    async with start_study(folder, seed, scenes) as (engine, images, scorer):
        arms = ("plain", *(f"verify:{name}={value}" for name, values in TUNED.items() for value in values))
        parameters = await measure_arms(engine, arms, (None,), images, scorer)
        study = {"seed": seed, "scenes": scenes, "parameters": parameters}
        save(study | describe_machine())
        checks = {
            f"{name}={value}": await measure_signals(engine, images, scorer, ClaimCheck(**{name: value}))
            for name, values in TUNED_CHECK.items()
            for value in values
        }
        save(study | {"checks": checks} | describe_machine())


async def measure(
    folder: Path, seed: int, scenes: int, parts: Sequence[str], save: Callable[[dict[str, Any]], None]
) -> None:
    """Draw the scenes, describe them under all arms, and score the captions.

    Args:
        folder: Where the scenes are written.
        seed: Seed of the scenes.
        scenes: Number of scenes.
        parts: Names of `PARTS` to measure.
        save: Takes the figures of each part as soon as they are measured.
    """
    async with start_study(folder, seed, scenes) as (engine, images, scorer):
        for part in parts:
            match part:
                case "greedy":
                    figures = await measure_arms(engine, GREEDY, (None,), images, scorer)
                case "signals":
                    figures = await measure_signals(engine, images, scorer, ClaimCheck())
                case "time":
                    figures = {
                        str(at_once): await time_arms(engine, images[: rounds * at_once], at_once)
                        for at_once, rounds in TIMED_AT_ONCE.items()
                    }
                case _:
                    figures = await measure_arms(engine, SAMPLED, SEEDS, images, scorer)
            study = {"seed": seed, "scenes": scenes, "seeds": SEEDS, "max_tokens": MAX_TOKENS}
            save(study | {part: figures, f"{part}_measured": describe_machine()})


async def measure_arms(
    engine: HFEngine,
    arms: Sequence[str],
    seeds: Sequence[int | None],
    images: Sequence[ImageInput],
    scorer: SceneScorer,
) -> dict[str, Any]:
    """Describe all images under all arms, the first of which is plain decoding, and score the captions."""
    figures: dict[str, Any] = {}
    plain: Floats | None = None
    for arm in arms:
        runs = [await describe_all(engine, arm, images, seed) for seed in seeds]
        counts = sum(
            (count_mentions(scorer.score([caption.answer.text for caption in run])) for run in runs), np.zeros(())
        )
        plain = counts if plain is None else plain
        hallucinated = counts[:, RATIOS.count_names.index("hallucinated")]
        fewer = np.sign(hallucinated - plain[:, RATIOS.count_names.index("hallucinated")])
        figures[arm] = compare_arm(counts, plain, Bootstrap.draw(len(images)), is_single=len(seeds) == 1)
        figures[arm]["images"] = {"improved": int((fewer < 0).sum()), "worsened": int((fewer > 0).sum())}
        figures[arm] |= summarize_cost([caption for run in runs for caption in run])
    return figures


async def measure_signals(
    engine: HFEngine, images: Sequence[ImageInput], scorer: SceneScorer, check: ClaimCheck
) -> dict[str, Any]:
    """Describe all images greedily by plain decoding, and measure how well signals separate hallucinated mentions."""
    captions = await describe_all(engine, "plain", images, check=check, grounding=True)
    scores = scorer.score([caption.answer.text for caption in captions])
    mentions: list[LabelledMention] = []
    missed = 0
    for scene, (caption, score) in enumerate(zip(captions, scores, strict=True)):
        labelled, without_claim = label_mentions(scene, caption.answer, score)
        mentions += labelled
        missed += without_claim
    result = summarize_mentions("plain", mentions, missed, Bootstrap.draw(len(images)))
    if result is None:
        raise SystemExit("The captions have no hallucinated mention, or only hallucinated ones. Draw more scenes.")
    return result.model_dump()


def summarize_cost(captions: Sequence[Caption]) -> dict[str, Any]:
    """Return means over captions: forward passes, words, and claims by action of `verify`."""
    actions = Counter(claim.action for caption in captions for claim in list_claims(caption.answer))
    return {
        "forward_passes": round(statistics.mean(caption.forward_passes for caption in captions), 2),
        "drafts": round(statistics.mean(caption.drafts for caption in captions), 2),
        "checks": round(statistics.mean(caption.checks for caption in captions), 2),
        "words": round(statistics.mean(len(caption.answer.text.split()) for caption in captions), 2),
        "claims": {action: round(actions[action] / len(captions), 3) for action in ACTIONS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=801223, help="seed of the scenes")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these, keep the others")
    parser.add_argument(
        "--tune", action="store_true", help="compare values of debias, views, threshold and tries instead"
    )
    parser.add_argument("--write", action="store_true", help="store the figures in bench/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / ("verify_tuning.json" if options.tune else "verify_study.json")

    def save(figures: dict[str, Any]) -> None:
        """Print the figures of a part, and add them to those of the other parts on the same scenes."""
        print(json.dumps(figures, indent=1), flush=True)
        if not options.write:
            return
        stored = json.loads(file.read_text()) if file.exists() else {}
        if all(stored.get(name) == figures[name] for name in ("seed", "scenes")):
            figures = stored | figures
        file.write_text(json.dumps(figures, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.tune:
            asyncio.run(tune(folder, options.seed, options.scenes, save))
        else:
            asyncio.run(measure(folder, options.seed, options.scenes, options.parts, save))


if __name__ == "__main__":
    main()
