"""Small states for tests; as a program it writes them until it is killed ("without end"), or "on a full disk".

Arguments of the program: which of the two, and a folder.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from library.checkpoint.naming import epoch_stem, last_stem, state_folder  # noqa: E402
from library.checkpoint.state import read_facts, read_state, write_state  # noqa: E402

_EXACT = 256  # bf16 has whole numbers up to it


def parts_of(step: int) -> dict[str, Any]:
    """Parts like those of a run, with values that tell which update they are of."""
    weight = nn.Parameter(torch.full((3, 4), float(step)))
    return {
        "weights": {"unet": [weight, torch.full((2,), step % _EXACT).to(torch.bfloat16)]},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "progress": {"step": step, "best": math.inf},
    }


FACT = {"step": 5, "epoch": 2, "options": {"seed": 1, "caption": "猫"}}


def written(folder: Path, step: int = 5) -> Path:
    write_state(folder, parts_of(step), {**FACT, "step": step})
    return folder


def step_in(folder: Path) -> int:
    """The update that all parts of a state are of."""
    state = read_state(folder)
    step = int(state["weights"]["unet"][0].max())
    assert int(state["weights"]["unet"][1].float().min()) == step % _EXACT
    found = {
        step,
        int(state["optimizer"]["state"][0]["step"]),
        state["progress"]["step"],
        read_facts(folder)["step"],
    }
    assert len(found) == 1, found
    return found.pop()


def write_without_end(top: Path) -> None:
    """For each number that comes in, a child that writes states from there on, under names that are new and names that
    are there, and says which are done."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            step = int(line)
            while True:
                step += 1
                written(state_folder(top, last_stem("a")), step)
                os.write(1, b"%d\n" % step)
                written(state_folder(top, epoch_stem("a", step % 3)), step)
        os.write(1, b"began %d\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


def write_on_a_full_disk(top: Path) -> None:
    """An old state, a new one that does not fit, and one that fits again."""
    import resource  # other systems than Unix have none

    folder = written(top / "a-state", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        write_state(folder, {**parts_of(2), "large": [torch.ones(100_000)]}, {**FACT, "step": 2})
    except OSError as error:
        print("refused", error.errno)
    assert step_in(folder) == 1
    print(*[path.name for path in top.iterdir()])
    print(step_in(written(folder, 3)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"without end": write_without_end, "on a full disk": write_on_a_full_disk}[sys.argv[1]](Path(sys.argv[2]))
