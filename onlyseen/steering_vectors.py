"""`python -m onlyseen steering-vectors` measures the steering vectors that the strategy `vti` needs."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

DESCRIPTION = "Measure the directions from hallucinated to true captions in the hidden states of a model, for `vti`."
EPILOG = (
    "A line of --pairs has `image_id`, `caption` and `hallucinated_caption`. The server reads the result from the "
    "folder of --steering-vectors. The official code has 50 pairs."
)
PROMPT = "Describe this image in detail."  # of the official code


def main() -> None:
    """Run the command. Exit with 2 if an input cannot be used."""
    parser = argparse.ArgumentParser(prog="onlyseen steering-vectors", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--model", required=True, help="folder or hub id of the model")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images")
    parser.add_argument("--pairs", required=True, type=Path, help="JSON lines with pairs of captions")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file that is written")
    parser.add_argument("--prompt", default=PROMPT, help="prompt of the captions; default: the official code's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; auto selects a GPU if there is one")
    arguments = parser.parse_args()

    from decoding.errors import OnlySeenError
    from decoding.hf_engine.captions import InvalidCaptions

    try:
        measure(arguments)
    except (InvalidCaptions, OnlySeenError) as error:
        print(f"onlyseen steering-vectors: {error}", file=sys.stderr)
        sys.exit(2)


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
    if not arguments.out.absolute().parent.is_dir():
        raise InvalidCaptions(f"--out: there is no folder {arguments.out.absolute().parent}")
    if not FILE_NAME.fullmatch(arguments.out.name):
        raise InvalidCaptions(f"--out: the server reads names such as vti.safetensors, and not {arguments.out.name}")
    model = Model(HFSettings(arguments.model, device=arguments.device))

    def report(number: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if number == len(pairs) else ""
            print(f"\r{number} of {len(pairs)} pairs", end=end, file=sys.stderr)

    directions = measure_directions(model, pairs, images, arguments.prompt, report)
    origin = {
        "pairs": str(len(pairs)),
        "pairs_sha256": hashlib.sha256(arguments.pairs.read_bytes()).hexdigest(),
        "prompt": arguments.prompt,
    }
    write_vector_file(arguments.out, directions, arguments.model, origin)
    print(f"{arguments.out}: directions of {len(pairs)} pairs")


if __name__ == "__main__":
    main()
