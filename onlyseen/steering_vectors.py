"""`python -m onlyseen steering-vectors` measures the steering vectors that the strategy `vti` needs."""

from __future__ import annotations

import argparse
import hashlib

from onlyseen.caption_measurement import build_parser, run_command, show_progress

DESCRIPTION = "Measure the directions from hallucinated to true captions in the hidden states of a model, for `vti`."
EPILOG = (
    "A line of --pairs has `image_id`, `caption` and `hallucinated_caption`. The server reads the result from the "
    "folder of --steering-vectors. The official code has 50 pairs."
)
PROMPT = "Describe this image in detail."  # of the official code


def main() -> None:
    """Run the command. Exit with 2 if an input cannot be used."""
    captions = "--pairs", "JSON lines with pairs of captions"
    prompt = PROMPT, "the official code's"
    run_command(build_parser("steering-vectors", DESCRIPTION, EPILOG, captions=captions, prompt=prompt), measure)


def measure(arguments: argparse.Namespace) -> None:
    """Measure the directions and write the file.

    Args:
        arguments: Arguments of the command.

    Raises:
        InvalidCaptions: The pairs or their images cannot be used, or the file cannot be written.
    """
    from decoding.hf_engine.captions import CaptionImages, InvalidCaptions, read_lines
    from decoding.hf_engine.direction_measurement import CaptionPair, measure_directions
    from decoding.hf_engine.model.model import Model
    from decoding.hf_engine.settings import HFSettings
    from decoding.multimodal.vector_files import FILE_NAME, write_vector_file

    pairs, images = read_lines(arguments.pairs, CaptionPair), CaptionImages(arguments.images)
    if not FILE_NAME.fullmatch(arguments.out.name):
        raise InvalidCaptions(f"--out: the server reads names such as vti.safetensors, and not {arguments.out.name}")
    model = Model(HFSettings(arguments.model, device=arguments.device))
    directions = measure_directions(model, show_progress(pairs, "pairs"), images, arguments.prompt)
    origin = {
        "pairs": str(len(pairs)),
        "pairs_sha256": hashlib.sha256(arguments.pairs.read_bytes()).hexdigest(),
        "prompt": arguments.prompt,
    }
    write_vector_file(arguments.out, directions, arguments.model, origin)
    print(f"{arguments.out}: directions of {len(pairs)} pairs")


if __name__ == "__main__":
    main()
