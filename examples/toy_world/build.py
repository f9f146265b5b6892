"""Trains the toy world's model from nothing: a small Stable Diffusion 1 that draws coloured shapes.

python examples/toy_world/build.py --out toy_world.safetensors

Takes the better part of an hour on two idle CPU cores. A run that was stopped goes on where it was; the same machine
with the same number of threads makes the same bytes again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

from library.core.errors import run_script

_HERE = Path(__file__).resolve().parent
TITLE = "sd-atelier toy world"


def main() -> None:
    """Builds what is not there yet."""
    arguments = _parser().parse_args()
    import torch

    from examples.toy_world.train_text_encoder import trained_text_encoder
    from examples.toy_world.train_unet import trained_unet
    from examples.toy_world.train_vae import measured, trained_vae
    from library.models.save import save_single_file
    from library.models.stable_diffusion import StableDiffusion

    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    vae = trained_vae(arguments.seed, arguments.work)
    print(f"The VAE keeps {measured(vae, arguments.seed):.1f} dB.", flush=True)
    text_encoder = trained_text_encoder(arguments.seed, arguments.work)
    unet = trained_unet(arguments.seed, vae, text_encoder, arguments.work)
    model = StableDiffusion("sd1", "epsilon", unet, text_encoder, vae)
    for network in (unet, text_encoder, vae):
        network.to(torch.float16)  # type: ignore[arg-type]
    told = {"format": "pt", "modelspec.title": TITLE, "modelspec.architecture": "stable-diffusion-v1"}
    save_single_file(model, arguments.out, told)
    minutes = (time.monotonic() - started) / 60
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {minutes:.0f} minutes in this run")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_HERE / "toy_world.safetensors", help="the model's file")
    parser.add_argument(
        "--work", type=Path, default=Path("output/toy_world"), help="folder for checkpoints, from which a run goes on"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same model (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores to use (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
