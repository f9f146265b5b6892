"""Kills real runs at random moments of saving and looks at what is left: python tests/checkpoint/kill_while_saving.py

Each round a run goes on from where the one before was killed (`--resume latest`), saves what it learned and a state at
every update, and is killed by SIGKILL at a drawn moment. Then every file under a final name must be whole, listed ones
as they were listed, and no saved update may be lost. LoRAs and whole models in three forms take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

import train_db  # noqa: E402
import train_network  # noqa: E402
from library.checkpoint.saves import SaveList  # noqa: E402
from library.checkpoint.state import check_state, read_facts, states_of  # noqa: E402
from library.core.atomic_io import TEMPORARY_MARK  # noqa: E402
from library.core.errors import run_script  # noqa: E402
from library.core.tensor_files import MODEL_HASH_KEY, data_hash  # noqa: E402
from library.models.files.folder_weights import STEMS, weights_files  # noqa: E402
from library.models.files.weights import open_weights  # noqa: E402
from library.models.forms import MODEL_INDEX  # noqa: E402
from library.models.save import save_single_file  # noqa: E402
from library.models.tiny import make_tiny_model  # noqa: E402

NAME = "cat"
PICTURES = ("cat.jpg", "coins.png")
STEPS = 12  # a finished run is begun anew in an empty folder
LONGEST_WAIT = 60.0  # seconds for the first save
WINDOW = 0.5  # seconds, in which a kill falls
WEIGHTS = (".safetensors", ".ckpt", ".pt")


@dataclass(frozen=True)
class Kind:
    """A sort of run: the script, and what is given to it besides."""

    name: str
    main: Callable[[Sequence[str]], None]
    words: tuple[str, ...]


KINDS = (
    Kind("network", train_network.main, ("--save_last_n_steps", "2", "--ema")),
    Kind("model", train_db.main, ("--save_last_n_steps", "1")),
    Kind("states", train_network.main, ("--network_train_unet_only", "--save_last_n_steps_state", "3")),
    Kind("folder", train_db.main, ("--save_last_n_steps", "1", "--save_model_as", "diffusers_safetensors", "--ema")),
    Kind("epochs", train_network.main, ("--save_every_n_epochs", "1", "--save_last_n_epochs", "1")),
    Kind("ckpt", train_db.main, ("--save_last_n_steps", "2", "--save_model_as", "ckpt")),
)


@dataclass
class Figures:
    """What happened in all rounds."""

    kills: int = 0
    in_a_save: int = 0
    finished: int = 0
    files: int = 0
    states: int = 0
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.in_a_save} of them left something half-written, {self.finished} runs came to"
            f" their end; {self.files} files and folders and {self.states} states were looked at, {self.resumed} runs"
            f" resumed; {len(self.wrong)} things are wrong"
        )


def play(folder: Path, rounds: int, seed: int, kinds: Sequence[Kind]) -> Figures:
    """Plays so many rounds below `folder`; the same seed draws the same moments."""
    draws, figures = random.Random(seed), Figures()
    base, data = prepare(folder)
    common = ["--pretrained_model_name_or_path", str(base), "--train_data_dir", str(data), "--resolution", "64"]
    common += ["--max_data_loader_n_workers", "0"]
    warm_up(folder, common, kinds)
    for number in range(rounds):
        kind = kinds[number % len(kinds)]
        out = folder / kind.name
        out.mkdir(exist_ok=True)
        if latest_step(out) == STEPS:  # its end is saved
            shutil.rmtree(out)
            out.mkdir()
        before = latest_step(out)
        words = [*common, "--output_dir", str(out), "--output_name", NAME]
        words += ["--max_train_steps", str(STEPS), "--save_every_n_steps", "1", "--save_state", *kind.words]
        words += ["--resume", "latest"] if before else ["--overwrite"]
        figures.resumed += before > 0
        code = run_and_kill(kind.main, words, out, draws.random(), waits_for_state=draws.random() < 0.5)
        if code is None:
            figures.kills += 1
            figures.in_a_save += any(path.name.startswith(TEMPORARY_MARK) for path in out.iterdir())
        else:
            figures.finished += code == 0
        figures.wrong += [f"round {number}, {kind.name}: {problem}" for problem in look_at(out, before, figures)]
        if code:
            figures.wrong.append(f"round {number}, {kind.name}: ended by itself with {code}")
            break
    return figures


def warm_up(folder: Path, words: Sequence[str], kinds: Sequence[Kind]) -> None:
    """Trains for one update here, so that the processes of the rounds find everything imported."""
    out = ("--output_dir", str(folder / "warm"), "--max_train_steps", "1")
    for main in {kind.main for kind in kinds}:
        main([*words, *out, "--overwrite"])
        AcceleratorState._reset_state(reset_partial_state=True)


def prepare(folder: Path) -> tuple[Path, Path]:
    """A tiny model, and two pictures."""
    base, data = folder / "base.safetensors", folder / "data"
    data.mkdir(parents=True)
    save_single_file(make_tiny_model("sd1", seed=0), base, {})
    for name in PICTURES:
        shutil.copy(ROOT / "tests" / "fixtures" / "photos" / name, data)
        (data / name).with_suffix(".txt").write_text("a cat", encoding="utf-8")
    return base, data


def run_and_kill(
    main: Callable[[Sequence[str]], None], words: Sequence[str], out: Path, drawn: float, waits_for_state: bool
) -> int | None:
    """Runs a script in a process of its own, and kills it some time after it has saved something.

    Args:
        drawn: 0 to 1; when it is killed, within the time that a few saves take.
        waits_for_state: whether a state must have been saved; else any file will do.

    Returns:
        None when it was killed, its exit code when it had ended before.
    """
    known, ending = contents(out), "-state" if waits_for_state else ""
    child = os.fork()  # everything is imported already: a round takes a second
    if child == 0:
        stream = os.open(out.with_name("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = 70
        try:
            print(*words, flush=True)
            code = run_script(lambda: main(words))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    limit = time.monotonic() + LONGEST_WAIT
    while not any(name.endswith(ending) for name, _ in contents(out) - known) and time.monotonic() < limit:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.002)
    else:
        time.sleep(drawn * WINDOW)
        os.kill(child, signal.SIGKILL)
    return end_of(child)


def end_of(child: int) -> int | None:
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:  # it had ended while we looked
        return 70
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def contents(folder: Path) -> set[tuple[str, int]]:
    """What is saved by name, and when it was written; neither what is not finished, nor the log and the list."""
    found = set()
    for path in folder.iterdir():
        if not path.name.startswith(TEMPORARY_MARK) and not path.name.endswith((".jsonl", "-saves.json")):
            with contextlib.suppress(OSError):
                found.add((path.name, path.stat().st_mtime_ns))
    return found


def latest_step(out: Path) -> int:
    states = states_of(out, NAME)
    return int(read_facts(states[0])["step"]) if states else 0


def look_at(out: Path, step_before: int, figures: Figures) -> list[str]:
    """What is wrong with the files under final names."""
    wrong = []
    for path in sorted(out.iterdir()):
        if path.name.startswith(TEMPORARY_MARK) or path.suffix == ".jsonl":
            continue
        try:
            if path.name.endswith("-state"):
                check_state(path)
                figures.states += 1
            elif path.is_dir():
                read_folder(path)
                figures.files += 1
            elif path.suffix in WEIGHTS:
                read_all(path)
                figures.files += 1
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                wrong.append(f"{path.name} is nothing that we know")
        except Exception as error:
            wrong.append(f"{path.name}: {error!r}")
    listed = SaveList.read(out, NAME)
    there = [save for save in listed.saves if all((out / name).exists() for name in save.names)]
    wrong += [f"{save.names[0]} is not as it is listed" for save in there if not save.is_as_written(out)]
    if latest_step(out) == STEPS and not any(out.glob(f"{NAME}.*")) and not (out / NAME).is_dir():
        wrong.append("the state of the last update is there, and the end is not")
    if latest_step(out) < step_before:
        wrong.append(f"a state of {step_before} updates was there, and the latest has {latest_step(out)}")
    return wrong


def read_folder(folder: Path) -> None:
    """Reads every file of a Diffusers model; the parts that its index names must be there."""
    index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
    for part in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        if part not in index or not any((folder / part).iterdir()):
            raise ValueError(f"{part} is missing")
    for part, stem in STEMS.items():
        json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        for path in weights_files(folder / part, stem):
            read_all(path)


def read_all(path: Path) -> None:
    """Reads every number of a file, and compares the hash that it holds of itself."""
    file = open_weights(path)
    for name in file.shapes:
        file.read(name)
    said = file.metadata.get(MODEL_HASH_KEY)
    if path.suffix == ".safetensors" and said is not None and said != data_hash(path):
        raise ValueError("its hash is not that of its content")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS], help="default: all, in turns")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if asked.kinds is None or kind.name in asked.kinds]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = play(Path(folder), asked.rounds, asked.seed, kinds)
        print(figures)
        for problem in figures.wrong:
            print(problem)
        if figures.wrong:
            print((Path(folder) / "log.txt").read_text(encoding="utf-8", errors="replace")[-4000:])
    return 1 if figures.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
