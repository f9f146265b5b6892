"""From a fresh copy of this folder to a trained file, in one command:

    python tools/quickstart.py

Makes the environment in .venv, trains a LoRA on the pictures in tests/fixtures/photos and shows what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from bootstrap import ROOT, RUNTIME, BootstrapError, ensure_environment, installed_version, run_tool, say, venv_python

PHOTOS = Path("tests/fixtures/photos")
NAME = "quickstart_lora"
STEPS = 30
_SHARE_OF_STEPS_AVERAGED = 5  # the loss of single steps jumps with their noise level; compare means of a fifth each
_LOSS_KEY = "loss/current"
_LORA_MODULE_MARK = ".lora_down.weight"


def main() -> int:
    """Installs, trains, shows the result."""
    options = _parse()
    output: Path = options.output
    say("1. The environment")
    python = ensure_environment(ROOT, RUNTIME)
    say("   ready")

    say("\n2. A model to train on")
    environment = _environment(options.device)
    model = output / "tiny_sd1.safetensors"
    _run([str(python), "tools/make_tiny_model.py", "sd1", str(model)], environment, "the tiny model could not be made")
    say(f"   {model}: a toy with the layout of Stable Diffusion 1.5 and random content")

    say(f"\n3. Training a LoRA on the {_picture_count()} pictures in {PHOTOS.as_posix()} ({STEPS} steps)")
    arguments = training_arguments(model, output)
    _run([str(python), *arguments], environment, "the training did not finish")
    _show_result(output, arguments)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto takes the graphics card when there is one"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/quickstart"), help="folder for the results, below this project"
    )
    return parser.parse_args()


def _environment(device: str) -> dict[str, str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # at toy size several threads only wait for each other
    if device == "cpu":
        environment.update(CUDA_VISIBLE_DEVICES="-1", ACCELERATE_USE_CPU="true")
    return environment


def training_arguments(model: Path, output: Path) -> list[str]:
    """The training command, without the Python in front."""
    return [
        "train_network.py",
        "--pretrained_model_name_or_path", model.as_posix(),
        "--train_data_dir", PHOTOS.as_posix(),
        "--resolution", "128",
        "--enable_bucket",
        "--min_bucket_reso", "64",
        "--cache_latents",
        "--train_batch_size", "1",
        "--max_train_steps", str(STEPS),
        "--learning_rate", "1e-3",
        "--network_dim", "4",
        "--seed", "42",
        "--output_dir", output.as_posix(),
        "--output_name", NAME,
        "--logging_dir", (output / "logs").as_posix(),
        "--overwrite",
    ]  # fmt: skip


def _run(command: list[str], environment: dict[str, str], failure: str) -> None:
    if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
        raise BootstrapError(f"{failure} (its message stands above)", "python tools/doctor.py checks the environment")


def _picture_count() -> int:
    return sum(1 for path in (ROOT / PHOTOS).iterdir() if path.suffix in (".jpg", ".png", ".webp"))


# --- the result -------------------------------------------------------------------------------------------------------


def _show_result(output: Path, arguments: list[str]) -> None:
    trained = ROOT / output / f"{NAME}.safetensors"
    if not trained.is_file():
        raise BootstrapError(f"the training ended but {trained} is not there", "python tools/doctor.py")
    modules = sum(1 for key in safetensors_keys(trained) if key.endswith(_LORA_MODULE_MARK))
    say("\n4. What came out")
    say(f"   file   {output / trained.name}, {trained.stat().st_size / 1024:.0f} KiB, {modules} LoRA modules")
    change = loss_change(read_log(output_log(ROOT / output)))
    if change is not None:
        say(f"   loss   {change[0]:.3f} over the first steps, {change[1]:.3f} over the last")
    say(f"   logs   {output / 'logs'} (show them: {_shown_python()} -m tensorboard.main --logdir {output / 'logs'})")
    say("\nThis proves that everything works from picture to file. It is no art yet: the toy model knows nothing,")
    say("so the file is of no use in a picture program. For a real LoRA, run the same command with your own model and")
    say("pictures: change the path of the model, --train_data_dir, --resolution (512), --max_train_steps (1500) and")
    say("--learning_rate (1e-4), and on a graphics card add --mixed_precision fp16.\n")
    say(format_command(_shown_python(), arguments, windows=os.name == "nt"))
    if _has_idle_card():
        say("\nThis build of torch cannot use the NVIDIA card of this machine: python tools/doctor.py tells the mend.")


def safetensors_keys(path: Path) -> list[str]:
    """Names of the tensors of a .safetensors file: 8 bytes of length (little endian), then a JSON table."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table: dict[str, Any] = json.loads(file.read(length))
    return [key for key in table if key != "__metadata__"]


def output_log(output: Path) -> Path:
    """The log of the run, one JSON object a line."""
    return output / f"{NAME}-log.jsonl"


def read_log(path: Path) -> list[float]:
    """The loss of every step in a run's log; empty when there is no log."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [float(row[_LOSS_KEY]) for row in rows if _LOSS_KEY in row]


def loss_change(losses: list[float]) -> tuple[float, float] | None:
    """Mean loss of the first and of the last fifth of the steps; None when there are too few."""
    count = len(losses) // _SHARE_OF_STEPS_AVERAGED
    if count == 0:
        return None
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


def format_command(python: str, arguments: list[str], windows: bool) -> str:
    """The command as one types it: on Windows in one line, elsewhere one option a line."""
    if windows:
        return subprocess.list2cmdline([python, *arguments])
    words = [shlex.quote(word) for word in arguments]
    return f"{python} " + " ".join(f"\\\n    {word}" if word.startswith("--") else word for word in words)


def _shown_python() -> str:
    return str(venv_python(Path(".venv")))


def _has_idle_card() -> bool:
    """An NVIDIA driver beside a CPU-only torch, seen without importing torch."""
    version = installed_version(ROOT / ".venv", "torch") or ""
    cpu_build = version.endswith("+cpu") or (os.name == "nt" and "+" not in version)
    if not cpu_build:
        return False
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    sys.exit(run_tool(main))
