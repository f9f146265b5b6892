"""Saving in another number format needs no second model in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from library.models import topology
from library.models.load import build_text_encoder, build_unet, build_vae, fill
from library.models.save import save_single_file
from library.models.stable_diffusion import StableDiffusion

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1.15

_MEASURE = """
import multiprocessing, sys
from pathlib import Path
import torch
from library.models.extras import read_extras
from library.models.forms import target_for
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.precision import Precisions
from library.models.save import save_model

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024

def peak_of_converting(source, form):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = status("VmRSS")
    identity = identify(Path(source))
    model = load_stable_diffusion(identity, "epsilon")
    target = target_for(Path(sys.argv[3]), "saved " + Path(source).stem, form)
    save_model(model, target, Precisions(torch.float16, torch.float16), read_extras(identity), {}, {})
    return status("VmHWM") - before

peak_of_converting(sys.argv[1], sys.argv[4])  # brings in what is imported late
# a process for each, since one that has held a model before does not give all of its memory back
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    print(*pool.starmap(peak_of_converting, [(sys.argv[2], form) for form in sys.argv[4:]], chunksize=1))
"""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD2 model of a few hundred MiB, large enough for its weights to drown what else is in memory."""
    parts = (
        build_unet(topology.unet_config("sd2", (128, 192, 320, 320), 128)),
        build_text_encoder(topology.text_config("sd2", 128, 512)),
        build_vae(topology.vae_config("sd2", (32, 32, 32, 32))),
    )
    for network in parts:
        fill(network, {name: torch.full(tensor.shape, 0.5) for name, tensor in network.state_dict().items()})
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    save_single_file(StableDiffusion("sd2", "epsilon", *parts), path, {})
    return path


@pytest.mark.parametrize(
    "forms", [("ckpt", "diffusers"), pytest.param(("safetensors", "diffusers_safetensors"), marks=pytest.mark.slow)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_and_saving_need_little_more_memory_than_the_source_is_large(
    wide_model: Path, model_files: Path, tmp_path: Path, forms: tuple[str, ...]
) -> None:
    paths = (str(model_files / "sd2.safetensors"), str(wide_model), str(tmp_path))
    command = [sys.executable, "-c", _MEASURE, *paths, *forms]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    ratios = [int(peak) / wide_model.stat().st_size for peak in result.stdout.splitlines()[-1].split()]
    print("peak in sizes of the source:", *(f"{form} {r:.3f}" for form, r in zip(forms, ratios, strict=True)))
    # a ratio far below one would mean that the measurement misses the weights
    assert all(0.8 < ratio < LIMIT for ratio in ratios), ratios
