"""`python -m onlyseen attention-statistics` measures the statistics that the strategy `adaiat` needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = "Measure where the attention heads of a model look when it mentions real and hallucinated objects."
EPILOG = (
    "Captions are the model's own, greedy, for the prompt of --prompt. `onlyseen-eval score chair --per-caption FILE` "
    "labels their objects. The server reads the result with --attention-statistics. The paper has 10,000 captions."
)
PROMPT = "Please describe the picture in detail."  # of the paper
MIN_MENTIONS = 20


def main() -> None:
    """Run the command. Exit with 2 if an input cannot be used."""
    parser = argparse.ArgumentParser(prog="onlyseen attention-statistics", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--model", required=True, help="folder or hub id of the model")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images")
    parser.add_argument(
        "--captions", required=True, type=Path, help="JSON lines with image_id, caption and labelled mentions"
    )
    parser.add_argument("--out", required=True, type=Path, help="safetensors file that is written")
    parser.add_argument("--prompt", default=PROMPT, help="prompt of the captions; default: the paper's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; auto selects a GPU if there is one")
    arguments = parser.parse_args()

    from decoding.errors import OnlySeenError
    from decoding.hf_engine.captions import InvalidCaptions

    try:
        measure(arguments)
    except (InvalidCaptions, OnlySeenError) as error:
        print(f"onlyseen attention-statistics: {error}", file=sys.stderr)
        sys.exit(2)


def measure(arguments: argparse.Namespace) -> None:
    """Measure the statistics and write the file.

    Args:
        arguments: Arguments of the command.

    Raises:
        InvalidCaptions: The captions or their images cannot be used, or too few of their objects have either label.
    """
    from decoding.hf_engine.attention_measurement import AttentionMeans, read_captions
    from decoding.hf_engine.captions import CaptionImages, InvalidCaptions
    from decoding.hf_engine.model.model import Model
    from decoding.hf_engine.settings import HFSettings
    from decoding.pipeline.attention_statistics import write_attention_statistics

    captions, images = read_captions(arguments.captions), CaptionImages(arguments.images)
    if not arguments.out.absolute().parent.is_dir():
        raise InvalidCaptions(f"--out: there is no folder {arguments.out.absolute().parent}")
    model = Model(HFSettings(arguments.model, device=arguments.device))
    means = AttentionMeans.zeros(model)
    for number, caption in enumerate(captions, 1):
        means.add_caption(model, caption, images, arguments.prompt)
        if sys.stderr.isatty():
            end = "\n" if number == len(captions) else ""
            print(f"\r{number} of {len(captions)} captions", end=end, file=sys.stderr)
    real, hallucinated = means.counts
    if min(real, hallucinated) < MIN_MENTIONS:
        raise InvalidCaptions(
            f"{arguments.captions} has {real} real and {hallucinated} hallucinated mentions after the first token; "
            f"means need at least {MIN_MENTIONS} of each"
        )
    write_attention_statistics(arguments.out, means.hallucinated, means.real)
    print(f"{arguments.out}: means of {real} real and {hallucinated} hallucinated mentions")


if __name__ == "__main__":
    main()
