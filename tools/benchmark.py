"""Measures how fast the toolkit is.

    python tools/benchmark.py step --json step.json
    python tools/benchmark.py index --images 100000 --json index.json
    python tools/benchmark.py captions --json captions.json

step: the real trainer beside the bare forward, backward and optimizer step, on a tiny model with one thread.
index: the first and the second start on many small files, memory a picture, plans of up to a million records.
captions: many small pictures through a tiny tagger, beside decoding and tagging alone; memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.atomic_io import write_text_whole
from library.core.errors import run_script
from library.core.log import start_logging

MODELS = ("sd1", "sd2")


def main() -> None:
    """Parses the command line, then imports what is slow."""
    arguments = _parser().parse_args()
    figures = arguments.measure(arguments)
    write_text_whole(arguments.json, json.dumps(figures, indent=2) + "\n")
    print(f"\nwritten: {arguments.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_step(commands.add_parser("step", help="one training step: what the trainer adds to the bare computation"))
    _add_index(commands.add_parser("index", help="many pictures: seconds of a start, bytes a picture, plans"))
    _add_captions(commands.add_parser("captions", help="many pictures through a tagger: what the runner adds, memory"))
    return parser


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(measure=_measure_step)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--model", choices=MODELS, default="sd1", help="family of the tiny model (default: sd1)")
    parser.add_argument("--steps", type=_count, default=5, metavar="N", help="steps of a round (default: 5)")
    parser.add_argument(
        "--rounds", type=_count, default=40, metavar="R", help="rounds of the trainer, and of the floor (default: 40)"
    )
    parser.add_argument("--resolution", type=_count, default=64, metavar="PIXELS", help="divisible by 64 (default: 64)")
    parser.add_argument("--batch_size", type=_count, default=1, metavar="N", help="pictures per batch (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="loader processes; 0 builds batches in the measured process, so that all its work counts (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto takes the graphics card when there is one"
    )


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(measure=_measure_index)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--images", type=_count, default=100_000, metavar="N", help="small picture files (default: 100000)"
    )
    parser.add_argument(
        "--folder", metavar="DIR",
        help="where the files are, or are made and left; their index is made anew (default: a temporary folder)",
    )  # fmt: skip
    parser.add_argument(
        "--records", type=_count, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N",
        help="sizes of the made-up indexes that are placed and planned (default: 10000 100000 1000000)",
    )  # fmt: skip


def _add_captions(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(measure=_measure_captions)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--pictures", type=_count, default=10_000, metavar="N", help="small picture files (default: 10000)"
    )
    parser.add_argument(
        "--rounds", type=_count, default=4, metavar="R", help="runs of the runner, and of the floor (default: 4)"
    )
    parser.add_argument("--batch_size", type=_count, default=8, metavar="N", help="pictures per batch (default: 8)")
    parser.add_argument("--threads", type=_count, metavar="N", help="that decode (default: as the scripts choose)")
    parser.add_argument(
        "--side", type=_count, default=448, metavar="PIXELS", help="of the tagger's square (default: 448)"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is expected")
    return number


def _measure_step(arguments: argparse.Namespace) -> dict[str, Any]:
    _prepare_environment(arguments.device)
    start_logging()  # before the imports: it keeps libraries from talking while they load
    from benchmark_step import Settings, measure, report, table  # after the environment is set: it imports torch

    names = ("model", "steps", "rounds", "resolution", "batch_size", "workers")
    settings = {name: getattr(arguments, name) for name in names}
    measurement = measure(Settings(**settings))
    machine = machine_facts(str(measurement.device))
    figures = report(measurement)
    print(f"{machine['cpu']}, device {machine['device']}, {machine['threads']} thread, torch {machine['torch']}")
    print(f"{', '.join(f'{name} {value}' for name, value in settings.items())}\n")
    print("\n".join(table(figures)))
    today = datetime.now(UTC).date().isoformat()
    return {"benchmark": "step", "date": today, "machine": machine, "settings": settings, **figures}


def _measure_index(arguments: argparse.Namespace) -> dict[str, Any]:
    _prepare_environment("cpu")
    start_logging()
    from benchmark_index import Settings, measure, table

    settings = {"images": arguments.images, "folder": arguments.folder, "records": tuple(arguments.records)}
    figures = measure(Settings(**settings))
    machine = machine_facts("cpu")
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}\n")
    print("\n".join(table(figures)))
    today = datetime.now(UTC).date().isoformat()
    return {"benchmark": "index", "date": today, "machine": machine, "settings": settings, **figures}


def _measure_captions(arguments: argparse.Namespace) -> dict[str, Any]:
    _prepare_environment("cpu")
    start_logging(is_main_process=False)  # errors only
    from benchmark_captions import Settings, measure, table

    settings = {name: getattr(arguments, name) for name in ("pictures", "rounds", "batch_size", "threads", "side")}
    figures = measure(Settings(**settings))
    machine = machine_facts("cpu")
    print(f"{machine['cpu']}, {machine['cores']} cores, {figures['threads']} decoding threads\n")
    print("\n".join(table(figures)))
    today = datetime.now(UTC).date().isoformat()
    return {"benchmark": "captions", "date": today, "machine": machine, "settings": settings, **figures}


def _prepare_environment(device: str) -> None:
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", ACCELERATE_USE_CPU="true")


def machine_facts(device: str) -> dict[str, Any]:
    """What the figures were measured with."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    """The processor's name; Linux alone tells it in a file."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(run_script(main))
