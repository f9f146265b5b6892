"""A training stage that is stopped anywhere and anyhow ends as one that never was; others' checkpoints are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.toy_world.recipe import Build, code_digest, code_of, seeded, weights_digest
from examples.toy_world.stages import Stage, check_checkpoints, run_stage
from library.core.atomic_io import temporary_name
from library.core.errors import Problems, UserError
from tests.toy_world import tiny_stage
from tests.toy_world.tiny_stage import STAGE, STEPS, Stop, train

BUILD = Build(0, Path())


def place(folder: Path, **changes: int) -> Build:
    return replace(BUILD, folder=folder, **changes)


def content(folder: Path) -> Any:
    """What the checkpoint holds: weights, averages, the optimizer, whose it is and the number of steps."""
    return torch.load(folder / "tiny.pt", weights_only=True)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """To the last bit, in networks, in dicts and in lists."""
    if isinstance(expected, nn.Module):
        found, expected = found.state_dict(), expected.state_dict()
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where} {key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where} {number}")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), where
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    """The network of a training that never stopped, and its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    return train(place(folder)), content(folder)


@pytest.mark.parametrize(("at", "seconds"), [*((at, 0.0) for at in range(STEPS)), (1, 1000.0), (STEPS - 1, 1000.0)])
def test_stopped_at_any_step(tmp_path: Path, whole: tuple[nn.Module, Any], at: int, seconds: float) -> None:
    """With a save after each step, and before the first one."""
    with pytest.raises(Stop):
        train(place(tmp_path), at=at, seconds_between_saves=seconds)
    assert (tmp_path / "tiny.pt").exists() == (seconds == 0 and at > 0)
    with seeded(at):  # what others draw meanwhile is no matter
        assert_same((train(place(tmp_path), seconds_between_saves=seconds), content(tmp_path)), whole)


def test_stopped_at_every_step(tmp_path: Path, whole: tuple[nn.Module, Any]) -> None:
    for at in range(1, STEPS):
        with pytest.raises(Stop):
            train(place(tmp_path), at=at)
    assert_same((train(place(tmp_path)), content(tmp_path)), whole)


def test_the_average_takes_the_place_of_the_weights(tmp_path: Path) -> None:
    """And is none of the last weights; the same after the checkpoint was read."""
    for _ in range(2):
        network = train(place(tmp_path))
        state = torch.load(tmp_path / "tiny.pt", weights_only=True)
        for parameter, average, last in zip(
            network.parameters(), state["averages"], state["network"].values(), strict=True
        ):
            assert torch.equal(parameter, average)
            assert not torch.equal(parameter, last)
            assert not parameter.requires_grad
        assert not network.training


def test_the_average_is_that_of_its_definition(tmp_path: Path) -> None:
    """From the weights after each step: a young average follows quickly, an old one by the stage's decay."""
    stage = replace(STAGE, steps=200)
    seen: list[Tensor] = []
    network = nn.Linear(1, 1)

    def loss_of(step: int) -> Tensor:
        seen.append(network.weight.detach().clone())
        return (network.weight - step).pow(2).sum() + network.bias.sum() * 0

    run_stage(stage, network, loss_of, place(tmp_path))
    weights = [*seen[1:], torch.load(tmp_path / "tiny.pt", weights_only=True)["network"]["weight"]]
    average = seen[0]
    for step, weight in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(network.weight, average, rtol=1e-5)


def test_the_rate_warms_up_and_falls(tmp_path: Path) -> None:
    """Adam's first step is as long as the rate; at the end hardly anything moves."""
    stage, seen = Stage("tiny", steps=100, rate=1e-2), []
    network = nn.Linear(1, 1, bias=False)

    def loss_of(step: int) -> Tensor:
        seen.append(network.weight.item())
        return network.weight.sum()  # the same gradient in every step: each is as long as its rate

    run_stage(stage, network, loss_of, place(tmp_path))
    lengths = [before - after for before, after in zip(seen, [*seen[1:], network.weight.item()], strict=True)]
    assert lengths[0] == 0
    assert lengths[2] == pytest.approx(0.5e-2, rel=1e-2)
    assert max(lengths) == pytest.approx(1e-2, rel=1e-2) and lengths.index(max(lengths)) in (4, 5)
    assert lengths[52] == pytest.approx(0.5e-2, rel=2e-2)
    assert lengths[-1] < 1e-5
    assert all(before > after for before, after in pairwise(lengths[6:]))


def test_the_rate_of_a_stage_that_is_cut_short() -> None:
    """The cosine aims further than the steps go, and a line takes the rest of the rate away."""
    whole, cut = Stage("whole", 100, 1e-2), Stage("cut", 50, 1e-2, horizon=100, cool_down=20)
    assert [cut.rate_at(step) for step in range(31)] == [whole.rate_at(step) for step in range(31)]
    assert cut.rate_at(40) == pytest.approx(whole.rate_at(40) / 2)
    assert cut.rate_at(49) == pytest.approx(whole.rate_at(49) / 20)
    assert cut.shortened(replace(BUILD, divisor=10)) == replace(cut, steps=5, horizon=10, cool_down=2)


def test_a_finished_stage_is_only_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = train(place(tmp_path))
    before = (tmp_path / "tiny.pt").stat()
    capsys.readouterr()
    assert_same(train(place(tmp_path), at=0), once)  # no step is taken, so nothing stops it
    assert (tmp_path / "tiny.pt").stat().st_mtime_ns == before.st_mtime_ns
    assert (tmp_path / "tiny.pt").stat().st_ino == before.st_ino
    assert capsys.readouterr().out == f"tiny: {STEPS} of {STEPS} steps are there\n"


def test_the_state_of_the_machine_changes_nothing(tmp_path: Path) -> None:
    networks = []
    for number in range(2):
        with seeded(number):
            before = torch.get_rng_state()
            networks.append(train(place(tmp_path / str(number))))
            assert torch.equal(torch.get_rng_state(), before)
    assert_same(*networks)
    assert_same(content(tmp_path / "0"), content(tmp_path / "1"))


def test_another_seed_is_another_network(tmp_path: Path) -> None:
    first, second = (train(place(tmp_path / str(seed), seed=seed)) for seed in range(2))
    assert not torch.equal(first[0].weight, second[0].weight)  # type: ignore[index]


def killed(folder: Path, seconds: float, at: int) -> None:
    command = [sys.executable, tiny_stage.__file__, str(folder), str(seconds), str(at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == -9, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize(("seconds", "saved"), [(0.0, STEPS - 1), (0.02, None), (1000.0, 0)])
def test_killed_again_and_again(
    tmp_path: Path, whole: tuple[nn.Module, Any], seconds: float, saved: int | None
) -> None:
    """Also between saves, which loses steps but no bytes."""
    for at in (4, 5, STEPS - 1):
        killed(tmp_path, seconds, at)
    if saved is not None:
        assert (content(tmp_path)["step"] if (tmp_path / "tiny.pt").exists() else 0) == saved
    assert_same((train(place(tmp_path)), content(tmp_path)), whole)


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    """Only what a dead process of this machine wrote; a number above the highest that there can be is dead."""
    number = str(os.getpid())
    left_over = tmp_path / temporary_name(".pt").replace(f"-{number}.pt", "-99999999.pt")
    for path in (left_over, tmp_path / "own.pt"):
        path.write_bytes(b"cut")
    train(place(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.pt", "tiny.pt"]


# --- whose checkpoint it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "stage", "told"),
    [
        ({"seed": 1}, {}, ("--seed 0 instead of 1", "first weights ")),
        ({"divisor": 2}, {}, ("--steps_divisor 1 instead of 2",)),
        ({}, {"steps": 13}, ("steps 12 instead of 13",)),
        ({}, {"rate": 2e-2}, ("learning rate 0.01 instead of 0.02",)),
        ({}, {"average": 0.0}, ("average 0.9 instead of 0.0",)),
        ({}, {"horizon": 20}, ("horizon 0 instead of 20",)),
        ({}, {"cool_down": 3}, ("cool-down 0 instead of 3",)),
        ({}, {"code": ("world",)}, ("code of the recipe",)),
    ],
)
@pytest.mark.parametrize("finished", (True, False))
def test_checkpoints_of_others_are_refused(
    tmp_path: Path, build: dict[str, int], stage: dict[str, object], told: tuple[str, ...], finished: bool
) -> None:
    """At once and together with other problems, and again when the stage begins; the file stays as it is."""
    if finished:
        train(place(tmp_path))
    else:
        with pytest.raises(Stop):
            train(place(tmp_path), at=5)
    before = (tmp_path / "tiny.pt").read_bytes()
    asked, other = place(tmp_path, **build), replace(STAGE, **stage)  # type: ignore[arg-type]
    problems = Problems()
    check_checkpoints([other], asked, problems)
    (problem,) = problems
    assert told[0] in problem.what
    assert "--work" in problem.fix
    with pytest.raises(UserError) as caught:
        train(asked, other)
    assert all(text in str(caught.value) for text in told)
    assert str(tmp_path / "tiny.pt") in str(caught.value)
    assert (tmp_path / "tiny.pt").read_bytes() == before


def test_own_checkpoints_and_none_are_no_problem(tmp_path: Path) -> None:
    problems = Problems()
    check_checkpoints([STAGE], place(tmp_path / "none"), problems)
    train(place(tmp_path))
    check_checkpoints([STAGE], place(tmp_path), problems)
    assert not problems
    assert not (tmp_path / "none").exists()


def test_a_network_before_it_that_changed_is_told(tmp_path: Path) -> None:
    """Such as a VAE that was built anew: the U-Net's checkpoint knows the latents of another."""
    earlier = nn.Linear(2, 2)

    def run() -> None:
        with seeded(0):
            network = nn.Linear(1, 1)
        run_stage(STAGE, network, lambda step: network.weight.sum(), place(tmp_path), before=[earlier])

    run()
    run()
    with torch.no_grad():
        earlier.weight[1, 1] += 1e-6
    with pytest.raises(UserError, match="is of another training: first weights "):
        run()


@pytest.mark.parametrize("content", (b"", b"no checkpoint", "cut", "other"))
def test_broken_checkpoints_are_told(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "tiny.pt"
    if content == "cut":
        train(place(tmp_path))
        path.write_bytes(path.read_bytes()[:-900])
    elif content == "other":
        torch.save({"network": {}}, path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    before = path.read_bytes()
    problems = Problems()
    check_checkpoints([STAGE], place(tmp_path), problems)
    assert [problem.where for problem in problems] == [str(path)]
    with pytest.raises(UserError, match="is no checkpoint of this recipe, or is damaged"):
        train(place(tmp_path))
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="the checkpoint cannot be written"):
        train(place(tmp_path / "file" / "below"))


def test_a_part_of_a_build() -> None:
    build = replace(BUILD, divisor=100)
    assert [build.part(count) for count in (5600, 140, 10, 1)] == [56, 1, 1, 1]
    assert BUILD.part(5600) == 5600


def test_a_shortened_stage_takes_its_part_of_the_steps(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(place(tmp_path / "a", divisor=3), at=3)
    train(place(tmp_path / "b", divisor=3), at=4)


def test_the_digest_of_code_knows_what_counts() -> None:
    text = '"""Docstring."""\n\ndef f(x):\n    """Says."""\n    return x  # why\n\n\nclass A:\n    """Nothing."""\n'
    same = '"""Other."""\ndef f( x ):\n    return (x)\n\nclass A: pass\n'
    assert code_of(text) == code_of(same)
    assert code_of(text) != code_of(text.replace("return x", "return -x"))
    assert code_of("x = 'text'") != code_of("x = 'other'")
    assert code_digest("world") == code_digest("world") != code_digest("captions")
    assert code_digest("world", "captions") != code_digest("captions", "world")


def test_the_digest_of_weights_knows_every_number() -> None:
    with seeded(0):
        network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4))
    digest = weights_digest(network)
    assert digest == weights_digest(network.to(memory_format=torch.channels_last))  # the same numbers lie elsewhere
    with torch.no_grad():
        network[0].weight[3, 2, 1, 1] += 1e-6
    assert weights_digest(network) != digest


def train_line(folder: Path, last: Any, steps: int = 3) -> nn.Module:
    """A straight line; `last` makes the loss of the last step out of what it would be."""
    with seeded(0):
        network = nn.Linear(2, 1)

    def loss_of(step: int) -> Tensor:
        loss = network(torch.tensor([1.0, float(step)])).pow(2).sum()
        found: Tensor = last(loss) if step == steps - 1 else loss
        return found

    stage = Stage("tiny", steps=steps, rate=1e-2, average=0.9)
    return run_stage(stage, network, loss_of, place(folder), seconds_between_saves=0.0)


def test_an_update_without_a_finite_gradient_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stays as it was before that update: the weights, their average, what the optimizer keeps."""
    train_line(tmp_path / "nan", lambda loss: loss * torch.nan)
    assert "step 3 is left out, its gradient is not finite" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        train_line(tmp_path / "stopped", lambda loss: loss / (1 // 0))
    found, expected = content(tmp_path / "nan"), content(tmp_path / "stopped")
    assert (found.pop("step"), expected.pop("step")) == (3, 2)
    assert found["averages"][0].isfinite().all()
    for part in ("network", "averages"):
        assert_same(found[part], expected[part])
    assert_same(found["optimizer"]["state"], expected["optimizer"]["state"])


def test_a_training_without_any_finite_gradient_ends(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    with pytest.raises(UserError, match="20 updates in a row had no finite gradient"):
        run_stage(
            Stage("tiny", steps=30, rate=1e-2),
            network,
            lambda step: network(torch.ones(2)).sum() * torch.inf,
            place(tmp_path),
        )
