"""Loading part by part and process by process (`--lowram`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Lock, Thread
from time import sleep

import pytest
import torch

from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.training.loading import load_in_turn, place
from tests.training.runs import ROOT, environment


@dataclass
class Companions:
    """Threads that stand in for the processes of a run: they run at once, and a real barrier holds them."""

    barrier: Barrier
    local_process_index: int

    @property
    def num_processes(self) -> int:
        return self.barrier.parties

    def wait_for_everyone(self) -> None:
        self.barrier.wait(10)


def loaded_by(indices: Sequence[int], in_turn: bool = True) -> tuple[list[str], list[int]]:
    """What happens when processes of these numbers on their machines load: the events in order, and the results."""
    barrier, lock, events, results = Barrier(len(indices)), Lock(), list[str](), list[int]()
    gate = Barrier(len(indices))  # not in turn, all of them are within their loading at the same time

    def work(index: int) -> None:
        def load() -> int:
            with lock:
                events.append(f"begin {index}")
            if in_turn:
                sleep(0.02)
            else:
                gate.wait(10)
            with lock:
                events.append(f"end {index}")
            return index

        results.append(load_in_turn(Companions(barrier, index), in_turn, load))

    threads = [Thread(target=work, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    return events, sorted(results)


def test_processes_load_one_after_the_other() -> None:
    events, results = loaded_by([2, 1, 0])
    assert results == [0, 1, 2]
    assert events == [f"{what} {index}" for index in range(3) for what in ("begin", "end")]


def test_without_the_option_they_load_at_once() -> None:
    events, results = loaded_by([1, 0], in_turn=False)
    assert results == [0, 1]
    assert {event.split()[0] for event in events[:2]} == {"begin"}


def test_the_processes_of_several_machines_wait_for_each_other() -> None:
    """Two machines with two processes each: local numbers repeat, and nobody is left waiting."""
    events, results = loaded_by([0, 1, 0, 1])
    assert results == [0, 0, 1, 1]
    assert all(event.endswith(" 0") for event in events[:4])


def test_parts_get_their_place_and_format(tiny_models: dict[str, Path]) -> None:
    path = tiny_models["sd1"]
    models, expected = (load_stable_diffusion(identify(path), "epsilon") for _ in range(2))
    place(models, torch.device("cpu"), {"unet": torch.bfloat16, "text_encoder": torch.float32})
    assert {p.dtype for p in models.unet.parameters()} == {torch.bfloat16}
    assert torch.equal(models.unet.conv_in.weight, expected.unet.conv_in.weight.bfloat16())
    for name in ("text_encoder", "vae"):
        found, wanted = getattr(models, name).state_dict(), getattr(expected, name).state_dict()
        assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted)
    starts = {p.untyped_storage().data_ptr() for p in expected.vae.parameters()}
    assert starts.isdisjoint(p.untyped_storage().data_ptr() for p in models.vae.parameters()), "memory of their own"


_MAKE = """
import sys
from pathlib import Path
import torch
from library.models import topology
from library.models.load import build_text_encoder, build_unet, build_vae, fill
from library.models.save import save_single_file
from library.models.stable_diffusion import StableDiffusion

parts = (
    build_unet(topology.unet_config("sd2", (128, 192, 320, 320), 128)),
    build_text_encoder(topology.text_config("sd2", 128, 512)),
    build_vae(topology.vae_config("sd2", (32, 32, 32, 32))),
)
for network in parts:
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    fill(network, {name: torch.full(shape, 0.5, dtype=torch.float16) for name, shape in shapes.items()})
save_single_file(StableDiffusion("sd2", "epsilon", *parts), Path(sys.argv[1]), {})
"""
_MEASURE = """
import sys
from pathlib import Path
import torch
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.training.loading import place

def own(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024

peak = 0
def watch(network):
    apply = network._apply
    def watched(function, recurse=True):
        global peak
        def seen(tensor):
            global peak
            result = function(tensor)
            peak = max(peak, own("RssAnon:"))
            return result
        return apply(seen, recurse)
    network._apply = watched

device = torch.device(sys.argv[3])
dtypes = {"unet": torch.float32, "text_encoder": torch.float32, "vae": torch.float32}
place(load_stable_diffusion(identify(Path(sys.argv[1])), "epsilon"), device, dtypes)
models = load_stable_diffusion(identify(Path(sys.argv[2])), "epsilon")
before = own("RssAnon:")
for network in (models.unet, models.text_encoder, models.vae):
    watch(network)
place(models, device, dtypes)
print(peak - before, own("RssAnon:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_second_copy_is_held(tiny_models: dict[str, Path], tmp_path: Path, device: str) -> None:
    """fp16 on disk, float32 in memory: on the CPU one float32 copy is held; elsewhere (here: nowhere) nothing stays."""
    wide = tmp_path / "wide.safetensors"
    subprocess.run([sys.executable, "-c", _MAKE, str(wide)], cwd=ROOT, env=environment(), check=True)
    command = [sys.executable, "-c", _MEASURE, str(tiny_models["sd2"]), str(wide), device]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    peak, held = (int(number) / (2 * wide.stat().st_size) for number in result.stdout.split())
    print(f"{device}: peak {peak:.3f}, held {held:.3f} of the float32 model")
    if device == "cpu":
        assert 0.95 < held < 1.1 and peak < 1.15
    else:
        assert held < 0.1 and peak < 0.15
