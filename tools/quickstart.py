"""From a fresh copy of this folder to a picture of what was learned, in one command:

    python tools/quickstart.py
    python tools/quickstart.py --method dreambooth --new_thing crescent

Makes the environment in .venv, draws a dozen pictures of something that the small model in examples/toy_world has never
seen, trains it on them, and shows what the model draws before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bootstrap import ROOT, RUNTIME, BootstrapError, ensure_environment, installed_version, run_tool, say, venv_python
from quickstart_recipes import (
    MODEL,
    NAME,
    RECIPES,
    THINGS,
    Recipe,
    class_folder,
    format_command,
    next_steps,
    on_windows,
    pictures_folder,
    real_arguments,
    sample_interval,
    training_arguments,
    word_of,
)

SHOW = "examples/toy_world/show.py"
LESSON = "quickstart.json"  # what the run is about, for `SHOW`
PICTURES = 12
_PATIENCE = 60  # seconds in which an interrupted training may save and end


def main() -> int:
    """Installs, draws, trains, shows the result."""
    options = _parse()
    recipe = RECIPES[options.method]
    new_thing: str = options.new_thing or recipe.new_thing
    thing = THINGS[new_thing]
    folder: Path = options.output / f"{options.method}-{new_thing}"
    steps: int = options.steps or recipe.steps
    say("1. The environment")
    python = str(ensure_environment(ROOT, RUNTIME))
    say("   ready")
    _require_model()
    environment = _environment(options.device)
    arguments = training_arguments(recipe, thing, folder, steps)
    lesson = lesson_of(options.method, new_thing, folder, arguments)

    say(f"\n2. {PICTURES} pictures of something new: {thing.spoken}")
    _write_lesson(folder, lesson)
    _run([python, SHOW, "prepare", folder.as_posix()], environment, "the pictures could not be drawn")

    say(f"\n3. Training {recipe.title} on the toy world, a small Stable Diffusion ({steps} updates)\n")
    began = time.monotonic()
    _run([python, *arguments], environment, "the training did not finish")
    lesson["seconds"] = round(time.monotonic() - began, 1)

    say("\n4. Before and after")
    _write_lesson(folder, lesson)
    _run([python, SHOW, "results", folder.as_posix()], environment, "the result could not be shown")
    _tell_what_next(recipe, lesson)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=tuple(RECIPES), default="lora", help="what to train (default: lora)")
    parser.add_argument(
        "--new_thing", choices=tuple(THINGS), help="what to teach; default: what the method learns well"
    )
    parser.add_argument("--steps", type=_count, metavar="N", help="number of updates; default: what the method needs")
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto takes the graphics card when there is one"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/quickstart"), help="folder for the results, below this project"
    )
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def lesson_of(method: str, new_thing: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """All that is needed to draw the pictures of a run and to show its result; goes into `LESSON`."""
    recipe, thing = RECIPES[method], THINGS[new_thing]
    steps = int(arguments[arguments.index("--max_train_steps") + 1])
    return {
        "method": method,
        "new_thing": new_thing,
        "title": recipe.title,
        "spoken": thing.spoken,
        "words": word_of(recipe, thing),
        "class_word": thing.class_word,
        "model": MODEL.as_posix(),
        "count": PICTURES,
        "pictures": pictures_folder(folder, recipe, thing).as_posix(),
        "class_pictures": class_folder(folder, thing).as_posix() if recipe.has_class_pictures else None,
        "trained": (folder / f"{NAME}{recipe.ending}").as_posix(),
        "steps": steps,
        "sampled_every": sample_interval(steps),
        "strength": recipe.strength,
        "arguments": arguments,
        "command": format_command(_shown_python(), arguments, on_windows()),
        "next": next_steps(recipe),
        "real_command": format_command(_shown_python(), real_arguments(recipe), on_windows()),
        "seconds": None,
    }


def _require_model() -> None:
    if not (ROOT / MODEL).is_file():
        fix = f"get it from the repository (git checkout -- {MODEL.as_posix()}), or make it with"
        raise BootstrapError(f"{MODEL} is missing", f"{fix} {_shown_python()} examples/toy_world/build.py")


def _write_lesson(folder: Path, lesson: dict[str, Any]) -> None:
    path = ROOT / folder / LESSON
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(lesson, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def _environment(device: str) -> dict[str, str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # at toy size several threads only wait for each other
    if device == "cpu":
        environment.update(CUDA_VISIBLE_DEVICES="-1", ACCELERATE_USE_CPU="true")
    return environment


def _run(command: list[str], environment: dict[str, str], failure: str) -> None:
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal tells both; the other saves what it has and ends by itself
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise
    if code != 0:
        raise BootstrapError(f"{failure} (its message stands above)", "python tools/doctor.py checks the environment")


def _tell_what_next(recipe: Recipe, lesson: dict[str, Any]) -> None:
    say(f"\n5. The same with a real model\n\nThis was the command of {lesson['seconds']:.0f} seconds:\n")
    say(lesson["command"])
    say()
    for number, words in enumerate(next_steps(recipe), start=1):
        say(f"{number}. {words}")
    say(f"\n{lesson['real_command']}")
    if _has_idle_card():
        say("\nThis build of torch cannot use the NVIDIA card of this machine: python tools/doctor.py tells the mend.")


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
