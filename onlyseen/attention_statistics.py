"""`python -m onlyseen attention-statistics` measures the statistics that the strategy `adaiat` needs."""

from __future__ import annotations

import argparse

from onlyseen.caption_measurement import build_parser, run_command, show_progress

DESCRIPTION = "Measure where the attention heads of a model look when it mentions real and hallucinated objects."
EPILOG = (
    "Captions are the model's own, greedy, for the prompt of --prompt. `onlyseen-eval score chair --per-caption FILE` "
    "labels their objects. The server reads the result with --attention-statistics. The paper has 10,000 captions."
)
PROMPT = "Please describe the picture in detail."  # of the paper
MIN_MENTIONS = 20


def main() -> None:
    """Run the command. Exit with 2 if an input cannot be used."""
    captions = "--captions", "JSON lines with image_id, caption and labelled mentions"
    prompt = PROMPT, "the paper's"
    run_command(build_parser("attention-statistics", DESCRIPTION, EPILOG, captions=captions, prompt=prompt), measure)


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
    model = Model(HFSettings(arguments.model, device=arguments.device))
    means = AttentionMeans.zeros(model)
    for caption in show_progress(captions, "captions"):
        means.add_caption(model, caption, images, arguments.prompt)
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
