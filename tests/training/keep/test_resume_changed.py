"""Resuming with other options than those of the state, and from states of other tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from library.checkpoint.state import read_state, write_state
from library.core.errors import UserError
from library.models.tiny import make_tiny_model
from library.options.parse import OptionValues, parse_options
from library.options.scripts import SCRIPTS
from library.training.assemble import build_trainer, load_learner, make_planner
from library.training.checks.preflight import check_full_model_run, check_network_run
from library.training.keep.resume import fast_forward, restore
from library.training.progress import plan_run
from library.training.resume_point import ResumePoint
from library.training.run import Run
from library.training.runtime import start_runtime
from library.training.trainer import Trainer
from tests.checkpoint.test_public_order import as_the_tool_has_it, layers_of_the_tool
from tests.training.keep.resumed import SAVING, assert_same_run, cut_off_after, rows, state_at, train_here
from tests.training.styles import CAPTION_FILES, style_words

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SCRIPT = "train_network.py"


@pytest.fixture
def words(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> list[str]:
    data = style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")
    common = ["--max_data_loader_n_workers", "0", "--learning_rate", "1e-3", "--network_train_unet_only"]
    return ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, *common]


def trainer_of(
    words: list[str],
    out: Path,
    updates: int,
    script: str = SCRIPT,
    check: Callable[[OptionValues], Run] = check_network_run,
) -> tuple[Trainer, Accelerator]:
    """A trainer of so many updates, as a script puts it together."""
    more = ["--output_dir", str(out), "--max_train_steps", str(updates)]
    run = check(parse_options(script, "", SCRIPTS[script].groups, [*words, *more]))
    accelerator = start_runtime(run.options.training.mixed_precision)
    planner = make_planner(run, 1)
    learner = load_learner(run, accelerator.device)
    return build_trainer(run, accelerator, learner, planner, plan_run(planner, updates, None)), accelerator


@pytest.fixture
def trained(words: list[str], tmp_path: Path) -> Iterator[tuple[Trainer, Accelerator]]:
    """A run of two updates."""
    trainer, accelerator = trainer_of([*words, "--ema"], tmp_path / "first", 2)
    trainer.run()
    yield trainer, accelerator
    trainer.log.close()


def written(trainer: Trainer, folder: Path) -> Path:
    trainer.log.drain()
    write_state(folder, trainer.state.state_dict(), {"step": trainer.progress.step, "epoch": 1})
    return folder


def group(trainer: Trainer) -> dict[str, Any]:
    (only,) = trainer.optimizer.param_groups
    return dict(only)


def moments(trainer: Trainer) -> list[torch.Tensor]:
    states = trainer.optimizer.state_dict()["state"]
    return [states[number]["exp_avg"] for number in sorted(states)]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, _, parameter in trainer.state.named_weights()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def test_changed_settings_win_and_all_else_goes_on(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    folder = written(trained[0], tmp_path / "x-state")
    changed = [*words, "--learning_rate", "5e-4", "--lr_scheduler", "linear", "--optimizer_args", "weight_decay=0.5"]
    trainer, _ = trainer_of(changed, tmp_path / "second", 4)
    lines = restore(ResumePoint(folder, 2, is_exact=False), trainer.state)
    assert same(weights(trainer), weights(trained[0])) and same(moments(trainer), moments(trained[0]))
    assert group(trainer)["weight_decay"] == 0.5
    assert group(trainer)["lr"] == pytest.approx(2.5e-4), "half of four updates are done"
    assert trainer.progress.step == 2 and trainer.state.session == trained[0].state.session
    assert any("after update 2" in line for line in lines)
    trainer.log.close()


def test_what_the_optimizer_has_found_stays_when_something_else_changes(words: list[str], tmp_path: Path) -> None:
    prodigy = ["--optimizer_type", "Prodigy", "--learning_rate", "1"]
    first, _ = trainer_of([*words, *prodigy], tmp_path / "first", 2)
    first.run()
    folder = written(first, tmp_path / "x-state")
    assert group(first)["d_numerator"] != first.state.began[0]["d_numerator"]
    second, _ = trainer_of([*words, *prodigy, "--optimizer_args", "d_coef=2"], tmp_path / "second", 4)
    restore(ResumePoint(folder, 2, is_exact=False), second.state)
    assert all(group(second)[key] == group(first)[key] for key in ("d", "d_numerator", "k"))
    assert group(second)["d_coef"] == 2
    for trainer in (first, second):
        trainer.log.close()


def test_another_optimizer_begins_anew_and_says_so(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    folder = written(trained[0], tmp_path / "x-state")
    trainer, _ = trainer_of([*words, "--optimizer_type", "Lion"], tmp_path / "second", 4)
    lines = restore(ResumePoint(folder, 2, is_exact=False), trainer.state)
    assert same(weights(trainer), weights(trained[0]))
    assert trainer.optimizer.state_dict()["state"] == {}
    assert any("optimizer begins anew" in line and "AdamW" in line for line in lines)
    trainer.log.close()


def test_an_average_that_the_state_lacks_begins_at_its_weights(words: list[str], tmp_path: Path) -> None:
    first, _ = trainer_of(words, tmp_path / "first", 2)
    first.run()
    folder = written(first, tmp_path / "x-state")
    second, _ = trainer_of([*words, "--ema"], tmp_path / "second", 4)
    with pytest.raises(UserError, match="ema"):
        restore(ResumePoint(folder, 2), second.state)
    lines = restore(ResumePoint(folder, 2, is_exact=False), second.state)
    assert second.ema is not None and same(second.ema.state_dict()["averages"], weights(first))
    assert any("running average begins here" in line for line in lines)
    for trainer in (first, second):
        trainer.log.close()


@pytest.mark.slow
def test_weights_of_other_shapes_are_refused(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    folder = written(trained[0], tmp_path / "x-state")
    for more, told in (("--network_dim", "8"), "other shapes"), (("--network_args", "conv_dim=2"), "they differ in"):
        trainer, _ = trainer_of([*words, "--ema", *more], tmp_path / "second", 4)
        for is_exact in (True, False):
            with pytest.raises(UserError, match=told):
                restore(ResumePoint(folder, 2, is_exact=is_exact), trainer.state)
        trainer.log.close()


def test_nothing_frozen_is_in_a_state(trained: tuple[Trainer, Accelerator], tmp_path: Path) -> None:
    parts = read_state(written(trained[0], tmp_path / "x-state"))
    (held,) = parts["weights"].values()
    learning = sum(p.numel() for _, _, p in trained[0].state.named_weights())
    assert sum(tensor.numel() for tensor in held.values()) == learning
    assert all("lora_unet_" in name for name in held), sorted(held)[:3]


def test_an_optimizer_keeps_the_formats_of_its_numbers(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    """Torch would bring them into the format of the weights."""
    first = trained[0]
    (parameter, *_) = (p for _, _, p in first.state.named_weights())
    first.optimizer.state[parameter]["exp_avg"] = first.optimizer.state[parameter]["exp_avg"].bfloat16()
    folder = written(first, tmp_path / "x-state")
    second, _ = trainer_of([*words, "--ema"], tmp_path / "second", 4)
    restore(ResumePoint(folder, 2), second.state)
    assert moments(second)[0].dtype == torch.bfloat16 and moments(second)[1].dtype == torch.float32
    assert same(moments(second), moments(first))
    second.log.close()


def test_a_state_is_not_taken_of_averaged_weights(words: list[str], tmp_path: Path) -> None:
    from library.optim.optimizers import eval_mode, train_mode

    trainer, _ = trainer_of([*words, "--optimizer_type", "AdamWScheduleFree"], tmp_path / "out", 2)
    trainer.run()
    eval_mode(trainer.optimizer)
    with pytest.raises(RuntimeError, match="average"):
        trainer.state.state_dict()
    train_mode(trainer.optimizer)
    assert trainer.state.state_dict()["optimizer"]["state"]["state"]
    trainer.log.close()


def test_a_schedule_is_brought_to_its_place() -> None:
    def made() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)

    walked, jumped = made(), made()
    for _ in range(5):
        walked[0].step()
        walked[1].step()
    fast_forward(jumped[1], 5)
    assert jumped[0].param_groups[0]["lr"] == walked[0].param_groups[0]["lr"]
    assert jumped[1].state_dict() == walked[1].state_dict()


@pytest.mark.slow
def test_a_longer_run_of_a_constant_rate_is_that_longer_run(words: list[str], tmp_path: Path) -> None:
    """Nothing that was learned knew how long the run would be, so no option needs to be allowed."""
    short, long = tmp_path / "short", tmp_path / "long"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        train_here(SCRIPT, [*words, *SAVING, "--output_dir", str(long), "--max_train_steps", "4"])
        train_here(SCRIPT, [*words, *SAVING, "--output_dir", str(short), "--max_train_steps", "2"])
        cut_off_after(short, 2)
        more = ["--resume", "latest", "--max_train_steps", "4"]
        train_here(SCRIPT, [*words, *SAVING, "--output_dir", str(short), *more])
    assert [row["step"] for row in rows(short) if "loss/current" in row] == [1, 2, 3, 4]
    losses = [[row["loss/current"] for row in rows(out) if "loss/current" in row] for out in (short, long)]
    assert losses[0] == losses[1]


def test_a_changed_run_goes_on_through_the_script(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    length = ["--max_train_steps", "4", "--output_dir", str(out)]
    train_here(SCRIPT, [*words, *SAVING, *length])
    cut_off_after(out, 2)
    before = (state_at(out, 2) / "weights.safetensors").read_bytes()
    changed = [*words, *SAVING, *length, "--resume", "latest", "--learning_rate", "2e-3"]
    with pytest.raises(UserError, match=r"--learning_rate: 0\.001 -> 0\.002"):
        train_here(SCRIPT, changed)
    train_here(SCRIPT, [*changed, "--allow_changed_options"])
    rates = {row["step"]: row["lr/unet"] for row in rows(out) if "lr/unet" in row}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 2e-3, 4: 2e-3}
    assert (state_at(out, 2) / "weights.safetensors").read_bytes() == before, "nothing earlier is overwritten"
    facts = json.loads((out / "last-state" / "facts.json").read_text(encoding="utf-8"))
    assert facts["rates"]["--learning_rate"] == 2e-3
    cut_off_after(out, 3)
    train_here(SCRIPT, changed)  # the state is of the new options now


def test_a_state_of_accelerate_gives_weights_and_optimizer(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    first, accelerator = trained
    accelerator.save_state(str(tmp_path / "foreign-state"))
    (tmp_path / "foreign-state" / "train_state.json").write_text('{"current_epoch": 1, "current_step": 2}')
    second, _ = trainer_of([*words, "--lr_scheduler", "linear"], tmp_path / "second", 4)
    lines = restore(ResumePoint(tmp_path / "foreign-state", 2, is_exact=False, is_foreign=True), second.state)
    assert same(weights(second), weights(first)) and same(moments(second), moments(first))
    assert second.progress.step == 2 and group(second)["lr"] == pytest.approx(5e-4)
    assert any(line.startswith("missing: ") for line in lines)
    assert not any("optimizer" in line for line in lines)
    second.log.close()
    as_network_alone(tmp_path / "foreign-state" / "model.safetensors")
    third, _ = trainer_of([*words, "--optimizer_type", "Lion"], tmp_path / "third", 4)
    lines = restore(ResumePoint(tmp_path / "foreign-state", 2, is_exact=False, is_foreign=True), third.state)
    assert same(weights(third), weights(first))
    assert any("optimizer begins anew" in line for line in lines), "AdamW's numbers are not Lion's"
    third.log.close()


def as_the_public_tool(trainer: Trainer, orders: list[list[str]], folder: Path) -> Path:
    """A state whose optimizer counts weights in groups of these names."""
    names = {
        name.rsplit("_loras.")[-1].removeprefix("trained."): number
        for number, (_, name, _) in enumerate(trainer.state.named_weights())
    }
    known = trainer.optimizer.state_dict()["state"]
    order = [names[name] for names_of_group in orders for name in names_of_group]
    counted = iter(range(len(order)))
    groups = [{"params": [next(counted) for _ in names_of_group]} for names_of_group in orders]
    state = {number: {**known[ours]} for number, ours in enumerate(order)}
    folder.mkdir()
    save_file({name: weights(trainer)[number] for name, number in names.items()}, folder / "model.safetensors")
    torch.save({"state": state, "param_groups": groups}, folder / "optimizer.bin")
    (folder / "train_state.json").write_text('{"current_epoch": 1, "current_step": 2}')
    return folder


@pytest.mark.parametrize("parts", ["unet", pytest.param("both", marks=pytest.mark.slow)])
def test_a_state_of_the_public_tool_gives_each_weight_its_own_numbers(
    words: list[str], tmp_path: Path, parts: str
) -> None:
    """It counts the layers of a transformer block in another order than Diffusers has them."""
    if parts == "both":
        words = [word for word in words if word != "--network_train_unet_only"]
    first, _ = trainer_of(words, tmp_path / "first", 2)
    first.run()
    model = make_tiny_model("sd1", seed=0)
    orders = [layers_of_the_tool(as_the_tool_has_it(model.unet), "lora_unet", ("Transformer2DModel",))]
    if parts == "both":
        texts = ("CLIPAttention", "CLIPMLP")
        orders.insert(0, layers_of_the_tool(model.text_encoder, "lora_te_text_model", texts))
    folder = as_the_public_tool(first, orders, tmp_path / "foreign-state")
    second, _ = trainer_of([*words, "--ema"], tmp_path / "second", 4)
    lines = restore(ResumePoint(folder, 2, is_exact=False, is_foreign=True), second.state)
    assert same(weights(second), weights(first)) and same(moments(second), moments(first))
    assert not any("optimizer" in line for line in lines), lines
    for trainer in (first, second):
        trainer.log.close()


@pytest.mark.slow
def test_a_whole_model_of_the_public_tool_gives_each_weight_its_own_numbers(words: list[str], tmp_path: Path) -> None:
    """It has one group: the U-Net, then the text encoder."""
    words = [word for word in words if word != "--network_train_unet_only"]
    first, _ = trainer_of(words, tmp_path / "first", 2, "train_db.py", check_full_model_run)
    first.run()
    model = make_tiny_model("sd1", seed=0)
    order = [f"unet.{name}" for name, _ in as_the_tool_has_it(model.unet).named_parameters()]
    order += [f"text_encoder.{name}" for name, _ in model.text_encoder.named_parameters()]
    folder = as_the_public_tool(first, [order], tmp_path / "foreign-state")
    second, _ = trainer_of(words, tmp_path / "second", 4, "train_db.py", check_full_model_run)
    lines = restore(ResumePoint(folder, 2, is_exact=False, is_foreign=True), second.state)
    assert same(weights(second), weights(first)) and same(moments(second), moments(first))
    assert not any("optimizer" in line for line in lines), lines
    for trainer in (first, second):
        trainer.log.close()


@pytest.mark.slow
def test_a_run_may_leave_out_what_it_began_with(words: list[str], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_here(SCRIPT, [*words, "--max_train_steps", "1", "--output_dir", str(tmp_path / "start")])
    begin = ["--network_weights", str(tmp_path / "start" / "last.safetensors")]
    length = [*SAVING, "--max_train_steps", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        train_here(SCRIPT, [*words, *begin, *length, "--output_dir", str(whole)])
        shutil.copytree(whole, resumed)
        for step, more in ((1, []), (2, begin), (3, [])):
            cut_off_after(resumed, step)
            train_here(SCRIPT, [*words, *more, *length, "--output_dir", str(resumed), "--resume", "latest"])
            assert_same_run(whole, resumed)


def as_network_alone(path: Path) -> None:
    """The weights as the public tool has them: of a LoRA nothing else, by the names of its files."""
    network = {name: tensor for name, tensor in load_file(str(path)).items() if name.startswith("trained.")}
    save_file({name[name.index("lora_unet_") :]: tensor for name, tensor in network.items()}, str(path))


@pytest.mark.slow
def test_a_state_of_accelerate_resumes_through_the_script(
    words: list[str], trained: tuple[Trainer, Accelerator], tmp_path: Path
) -> None:
    trained[1].save_state(str(tmp_path / "foreign-state"))
    (tmp_path / "foreign-state" / "train_state.json").write_text('{"current_epoch": 1, "current_step": 2}')
    out, resume = tmp_path / "out", ["--resume", str(tmp_path / "foreign-state"), "--max_train_steps"]
    with pytest.raises(UserError, match="finished"):
        train_here(SCRIPT, [*words, "--output_dir", str(out), *resume, "2"])
    train_here(SCRIPT, [*words, "--output_dir", str(out), *resume, "4"])
    assert [row["step"] for row in rows(out) if "loss/current" in row] == [3, 4]
    assert (out / "last.safetensors").is_file()
