"""Converts a whole Stable Diffusion model between single files and Diffusers folders, offline and without loss.

python tools/convert_model.py model.ckpt model.safetensors
python tools/convert_model.py model.safetensors diffusers_folder --precision fp16
python tools/convert_model.py stabilityai/stable-diffusion-2 sd2.safetensors --vae vae.pt --vae_precision fp16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Problems, UserError, run_script
from library.options.saving import CKPT, PRECISIONS, SAVE_FORMATS

if TYPE_CHECKING:
    from library.models.forms import SaveTarget
    from library.training.run import BaseModel


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow; every mistake is told before a weight is read."""
    arguments = _parser().parse_args(words)
    from library.core.log import start_logging
    from library.options.model import ModelOptions
    from library.training.checks.base_model import check_base_model

    start_logging()
    problems = Problems()
    asked = ModelOptions(arguments.model, arguments.vae, arguments.v2, arguments.v_parameterization)
    base = check_base_model(asked, problems)
    target = _check_output(arguments, problems)
    if base is None or target is None or problems:
        raise UserError(problems)
    _convert(base, target, arguments)


def _convert(base: BaseModel, target: SaveTarget, arguments: argparse.Namespace) -> None:
    from library.core.atomic_io import size_on_disk
    from library.core.device import dtype_of
    from library.models.extras import read_extras
    from library.models.save import Precisions, save_model
    from library.text.tokenizer import tokenizer_files
    from library.training.facts import conversion_metadata
    from library.training.methods import fetch_base_model, load_models

    base = fetch_base_model(base)
    extras = read_extras(base.identity)
    models = load_models(base)
    asked = {"weights": arguments.precision, "vae": arguments.vae_precision}
    formats = {part: None if name is None else dtype_of(name) for part, name in asked.items()}
    for part, loaded in (("weights", models.dtype), ("vae", models.vae.dtype)):
        if target.form == CKPT and formats[part] is None and str(loaded) == "torch.bfloat16":
            formats[part] = dtype_of("fp16")
            print(f"{part}: bf16 becomes fp16, for the Web UI refuses a .ckpt that holds bf16")
    metadata = conversion_metadata(base, target.path.stem, extras.metadata, keeps_bits=not any(formats.values()))
    save_model(models, target, Precisions(**formats), extras, metadata, tokenizer_files(models.family))
    print(f"{target.path} ({target.form}, {size_on_disk(target.path) / 1e6:.1f} MB)")


def _check_output(arguments: argparse.Namespace, problems: Problems) -> SaveTarget | None:
    from library.models.forms import SaveTarget, files_in_the_way, form_of_path, is_single_file, refuse_other_folder

    try:
        target = SaveTarget(arguments.out, arguments.save_model_as or form_of_path(arguments.out))
        if not is_single_file(target.form):
            refuse_other_folder(target.path)
    except UserError as error:
        problems.extend(error.problems)
        return None
    for path in files_in_the_way(target):
        if not arguments.overwrite:
            problems.add("exists already and would be lost", str(path), "choose another name, or give --overwrite")
    return target


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false is expected, got {text!r}")
    return text.lower() == "true"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Convert a whole model between all forms, offline and without loss.")
    parser.add_argument("model", help="a .safetensors or .ckpt file, a Diffusers folder, or a name on the Hub")
    parser.add_argument(
        "out", type=Path, help="a .safetensors or .ckpt file; any other name is a Diffusers folder with .safetensors"
    )
    parser.add_argument("--save_model_as", choices=SAVE_FORMATS, help="default: told by the name of OUT")
    parser.add_argument("--precision", choices=PRECISIONS, help="of U-Net and text encoder; default: unchanged")
    parser.add_argument("--vae_precision", choices=PRECISIONS, help="of the VAE; default: unchanged")
    parser.add_argument("--vae", metavar="MODEL", help="VAE that takes the place of the model's own")
    parser.add_argument("--v2", action="store_true", help="the model is Stable Diffusion 2.x; never needed")
    parser.add_argument(
        "--v_parameterization",
        nargs="?",
        const=True,
        type=_truth,
        metavar="true|false",
        help="the model predicts v; needed only where its files do not tell",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT names")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
