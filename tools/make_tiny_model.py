"""Writes a small random Stable Diffusion model with the true layer layout, for tests and for trying out options.

python tools/make_tiny_model.py sd1 tiny.safetensors
python tools/make_tiny_model.py sd2_v tiny_folder --seed 3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import run_script

KINDS = ("sd1", "sd2", "sd2_v")
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")


def main() -> None:
    """Parses the command line, then imports what is slow."""
    arguments = _parser().parse_args()
    from library.models.save import save_diffusers, save_single_file
    from library.models.tiny import make_tiny_model
    from library.text.tokenizer import tokenizer_files

    model = make_tiny_model(arguments.kind, arguments.seed)
    if arguments.out.suffix.lower() in SINGLE_FILE_SUFFIXES:
        told = "v" if model.prediction_type == "v_prediction" else "epsilon"
        save_single_file(model, arguments.out, {"format": "pt", "modelspec.prediction_type": told})
    else:
        save_diffusers(model, arguments.out, tokenizer_files(model.family))
    print(arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a small random Stable Diffusion model of the true layout.")
    parser.add_argument("kind", choices=KINDS, help="model family; sd2_v is the 2.x model with v-prediction")
    parser.add_argument("out", type=Path, help="a .safetensors or .ckpt file; any other name is a Diffusers folder")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
