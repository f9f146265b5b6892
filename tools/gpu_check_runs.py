"""The checks of tools/gpu_check.py, each in the process that was started for it."""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmark import machine_facts
from gpu_check_list import ATTENTION, CHECKS, ENVIRONMENT, PREPARE, Check
from library.core.device import peak_memory_mib
from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator
from library.models import topology
from library.models.attention import attend_in_blocks
from library.models.save import save_single_file
from library.models.tiny import make_random_model

MODEL = "model.safetensors"
PICTURES, RATIO = 4, 8  # pictures of noise, whose grains are so many pixels wide
PACKAGES = ("accelerate", "bitsandbytes", "diffusers", "transformers", "xformers")
_WARM_UP = 2  # updates that are not timed
_FULL_STEPS, _TOY_STEPS = 10, 4
_POLL = 0.005  # seconds

Figures = dict[str, Any]


class SkippedError(Exception):
    """The check makes no sense here; the message says why."""


def run_and_write(name: str, work: Path, toy: bool) -> None:
    """Runs one check and leaves its result, whatever it is, in the working folder."""
    try:
        result: Figures = {"status": "ok", **_run(name, work, toy)}
    except SkippedError as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except UserError as error:
        result = {"status": "failed", "reason": " | ".join(str(error).split("\n"))}
    except Exception as error:  # a check may fail in any way; the others go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).strip().splitlines() or [""])[0]
        result = {"status": "failed", "reason": f"{type(error).__name__}: {first} ({where.filename}:{where.lineno})"}
    (work / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def _run(name: str, work: Path, toy: bool) -> Figures:
    check = CHECKS[name]
    if check.needs_card and not torch.cuda.is_available():
        raise SkippedError("no CUDA card")
    if check.package is not None and find_spec(check.package) is None:
        raise SkippedError(f"{check.package} is not installed")
    if name == PREPARE:
        return prepare(work, toy)
    if name == ENVIRONMENT:
        return environment()
    if name == ATTENTION:
        return attention_kernels(64 if toy else 2048)
    return train(name, check, work, toy)


# --- what the trainings need ------------------------------------------------------------------------------------------


def prepare(work: Path, toy: bool) -> Figures:
    """Writes the random model and the pictures."""
    if not toy and not torch.cuda.is_available():
        raise RuntimeError("no CUDA card can be used; --device cpu --toy goes through the checks without one")
    widths = (topology.TOY_WIDTHS if toy else topology.FULL_WIDTHS)["sd1"]
    model = make_random_model("sd1", 0, widths)
    file, dtype = work / MODEL, torch.float32 if toy else torch.float16
    for network in (model.unet, model.text_encoder, model.vae):
        torch.nn.Module.to(network, dtype)
    save_single_file(model, file, {})
    side, folder = _side(toy), work / "pictures"
    folder.mkdir()
    for number in range(PICTURES):
        grains = generator(0, NO_EPOCH, str(number), "picture").integers(0, 256, (side // RATIO, side // RATIO, 3))
        picture = Image.fromarray(grains.astype("uint8")).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zumira, pattern {number}", encoding="utf-8")
    return {"model_mib": round(file.stat().st_size / 2**20)}


def environment() -> Figures:
    """What the figures were measured with."""
    has_card = torch.cuda.is_available()
    facts = machine_facts("cuda:0" if has_card else "cpu")
    versions = {name: _version(name) for name in PACKAGES}
    if not has_card:
        return {**facts, "packages": versions}
    card = torch.cuda.get_device_properties(0)
    return {
        **facts,
        "packages": versions,
        "card_memory_mib": card.total_memory >> 20,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(),
    }


def _version(package: str) -> str | None:
    if find_spec(package) is None:
        return None
    return str(getattr(importlib.import_module(package), "__version__", "?"))


# --- attention --------------------------------------------------------------------------------------------------------

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def attention_kernels(tokens: int) -> Figures:
    """Error against float64, time and peak memory of every kind, forward and backward, self and cross attention.

    Raises:
        RuntimeError: what is always offered (torch's own, and the blocks) is wrong somewhere.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [
        {
            "kind": kind,
            "dtype": str(dtype).removeprefix("torch."),
            "keys": keys,
            **_measured(attend, dtype, keys, tokens),
        }
        for kind, attend in _kinds(device).items()
        for dtype in _TOLERANCES
        for keys in (tokens, 77)
    ]
    wrong = [row for row in rows if row["kind"] in ("sdpa", "mem_eff_attn") and not row.get("good")]
    if wrong:
        raise RuntimeError(f"attention is wrong: {wrong}")
    return {"kernels": rows}


def _kinds(device: torch.device) -> dict[str, Attend]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def forced(backend: SDPBackend) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value)

        return attend

    def blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_in_blocks(query, key, value, query.shape[-1] ** -0.5)

    kinds: dict[str, Attend] = {"sdpa": scaled_dot_product_attention, "mem_eff_attn": blocks}
    if device.type != "cuda":
        return kinds
    names = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
    kinds |= {f"sdpa {name.lower()}": forced(getattr(SDPBackend, name)) for name in names}
    if find_spec("xformers") is not None:
        ops = importlib.import_module("xformers.ops")

        def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # that package has the heads behind the tokens
            heads_last = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return ops.memory_efficient_attention(*heads_last).transpose(1, 2)

        kinds["xformers"] = xformers
    return kinds


def _measured(attend: Attend, dtype: torch.dtype, keys: int, tokens: int) -> Figures:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draws = torch.Generator().manual_seed(0)
    shapes = [(1, 8, length, 40) for length in (tokens, keys, keys)]
    leaves = [torch.randn(shape, generator=draws).to(device, dtype).requires_grad_() for shape in shapes]
    upstream = torch.randn(shapes[0], generator=draws).to(device)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    reference = (exact[0] @ exact[1].mT * 40**-0.5).softmax(dim=-1) @ exact[2]
    expected = [reference.detach(), *torch.autograd.grad(reference, exact, upstream.double())]
    del reference
    try:
        with _peak(device) as peak:
            began = time.perf_counter()
            result = attend(*leaves)
            found = [result.detach(), *torch.autograd.grad(result, leaves, upstream.to(dtype))]
            _finish(device)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # not every card has every kernel
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    error_of = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    good = max(error_of) <= _TOLERANCES[dtype]
    took = 1000 * (time.perf_counter() - began)
    return {"error_forward": error_of[0], "error_gradient": max(error_of[1:]), "good": good, "first_ms": took, **peak}


@contextmanager
def _peak(device: torch.device) -> Iterator[Figures]:
    """Memory that the block takes at most beyond what was held before."""
    figures: Figures = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    yield figures
    if device.type == "cuda":
        figures["peak_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- trainings --------------------------------------------------------------------------------------------------------


def train(name: str, check: Check, work: Path, toy: bool) -> Figures:
    """Runs a script of ours as a person would; returns losses, seconds and peak memory of its steps.

    Raises:
        RuntimeError: nothing was saved, a loss is not finite, or losses are far from the reference's.
    """
    out = work / name
    script = importlib.import_module(str(check.script).removesuffix(".py"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = _TOY_STEPS if toy else _FULL_STEPS
    with Watch(out / "last-log.jsonl", device) if device.type == "cuda" else nullcontext():
        script.main([*_common_words(work, out, _side(toy), steps), *check.words])
    if not list(out.glob("last.*")):
        raise RuntimeError(f"nothing was saved in {out}")
    rows = [json.loads(line) for line in (out / "last-log.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss/current" in row]
    shutil.rmtree(out)  # whole models are large, and there are many
    losses = [row["loss/current"] for row in rows]
    if len(losses) != steps or None in losses:
        raise RuntimeError(f"losses are missing or not finite: {losses}")
    peak = peak_memory_mib(device)
    figures: Figures = {
        "step_seconds": round(statistics.median(1 / row["speed"] for row in rows[_WARM_UP:]), 4),
        "peak_mib": None if peak is None else round(peak),
        "losses": losses,
    }
    return {**figures, **_compared(check, losses, work)}


def _compared(check: Check, losses: list[float], work: Path) -> Figures:
    file = work / f"{check.reference}.json"
    if check.reference is None or not file.is_file():
        return {}
    reference = json.loads(file.read_text(encoding="utf-8")).get("losses")
    if reference is None:
        return {}
    far = max(abs(ours - other) / other for ours, other in zip(losses, reference, strict=True))
    if far > check.tolerance:
        raise RuntimeError(f"losses {losses} are up to {far:.1%} from {reference} of {check.reference}")
    return {"from_reference": round(far, 6)}


@dataclass
class Watch:
    """Forgets the peak memory of the start as soon as the log has the first update: what is left is that of steps."""

    log: Path
    device: torch.device
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _wait(self) -> None:
        while not self._done.wait(_POLL):
            if self.log.is_file() and self.log.stat().st_size:
                torch.cuda.reset_peak_memory_stats(self.device)
                return


def _common_words(work: Path, out: Path, side: int, steps: int) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(work / MODEL)),
        *("--train_data_dir", str(work / "pictures"), "--resolution", str(side), "--cache_latents"),
        *("--output_dir", str(out), "--max_train_steps", str(steps), "--max_data_loader_n_workers", "0"),
    ]


def _side(toy: bool) -> int:
    return 64 if toy else 512


if __name__ == "__main__":
    sys.exit("run tools/gpu_check.py")
