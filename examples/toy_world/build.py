"""Trains the toy world's model from nothing: a small Stable Diffusion 1 that draws coloured shapes.

python examples/toy_world/build.py --out toy_world.safetensors

Takes about 80 minutes on two idle CPU cores. A run that was stopped goes on where it was when it is started
again with the same options; the same machine with the same number of threads makes the same bytes again. To see in a
few minutes that all of it works:

python examples/toy_world/build.py --steps_divisor 100
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems, run_script

_HERE = Path(__file__).resolve().parent
TITLE = "sd-atelier toy world"
FILE = "toy_world.safetensors"


def main() -> None:
    """Builds what is not there yet."""
    arguments = _parser().parse_args()
    _settle_places(arguments)
    problems = Problems()
    _check(arguments, problems)
    problems.raise_if_any()
    import torch

    from examples.toy_world import train_text_encoder, train_unet, train_vae
    from examples.toy_world.recipe import Build
    from examples.toy_world.stages import check_checkpoints
    from library.models.save import save_single_file
    from library.models.stable_diffusion import StableDiffusion

    torch.set_num_threads(arguments.threads)
    build = Build(arguments.seed, arguments.work, arguments.steps_divisor)
    check_checkpoints((*train_vae.STAGES, train_text_encoder.STAGE, train_unet.STAGE), build, problems)
    problems.raise_if_any()
    started = time.monotonic()
    vae = train_vae.trained_vae(build)
    text_encoder = train_text_encoder.trained_text_encoder(build)
    unet = train_unet.trained_unet(build, vae, text_encoder)
    train_vae.sharpen_decoder(vae, build)
    kept = train_vae.measured(vae, build.seed, build.part(train_vae.MEASURED_BATCHES))
    print(f"The VAE keeps {kept:.1f} dB.", flush=True)
    model = StableDiffusion("sd1", "epsilon", unet, text_encoder, vae)
    for network in (unet, text_encoder, vae):
        torch.nn.Module.to(network, torch.float16)  # by its own `to`, Diffusers warns of nothing
    told = {"format": "pt", "modelspec.title": TITLE, "modelspec.architecture": "stable-diffusion-v1"}
    save_single_file(model, arguments.out, told)
    minutes = (time.monotonic() - started) / 60
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {minutes:.0f} minutes in this run")


def _settle_places(arguments: argparse.Namespace) -> None:
    """Fills in places that were not given: a shortened run has its own, so that it replaces nothing that draws."""
    shortened = arguments.steps_divisor != 1
    if arguments.work is None:
        arguments.work = Path("output") / (f"toy_world_{arguments.steps_divisor}" if shortened else "toy_world")
    if arguments.out is None:
        arguments.out = (arguments.work if shortened else _HERE) / FILE


def _check(arguments: argparse.Namespace, problems: Problems) -> None:
    for flag, number in (("--threads", arguments.threads), ("--steps_divisor", arguments.steps_divisor)):
        if number < 1:
            problems.add(f"must be 1 or more, got {number}", flag, "give a whole number from 1 on")
    if arguments.out.suffix.lower() != ".safetensors":
        problems.add(f"{arguments.out} has another ending", "--out", "give a name that ends with .safetensors")
    if arguments.out.is_dir():
        problems.add(f"{arguments.out} is a folder", "--out", "give the name of a file")
    for flag, folder in (("--out", arguments.out.parent), ("--work", arguments.work)):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        error = why_not_writable(nearest) if nearest.is_dir() else NotADirectoryError(0, f"{nearest} is a file")
        if error is not None:
            problems.add(f"{folder} cannot be written to ({error.strerror})", flag, "give another place")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"the model's file (default: {_HERE / FILE})")
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoints, from which a run goes on (default: output/toy_world)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same model (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores to use (default: 2)")
    parser.add_argument(
        "--steps_divisor",
        type=int,
        default=1,
        metavar="N",
        help="take one Nth of all steps and pictures, which shows that it works and gives a model that cannot draw; "
        f"the defaults are then --work output/toy_world_N and {FILE} in that folder (default: 1)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
