"""A part that was asked to train and does not learn stops the run; weights that are not finite are never saved."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import train_textual_inversion
from library.core.errors import UserError
from library.training.guards import (
    MOST_SKIPPED,
    WATCHED_UPDATES,
    GradientWatch,
    MovementWatch,
    refuse_non_finite,
    refuse_non_finite_update,
)
from tests.training.runs import run_here


class TwoParts(nn.Module):
    """A text encoder and a U-Net of one layer each; `text_share` scales what the text encoder adds."""

    def __init__(self, text_share: float = 1.0) -> None:
        super().__init__()
        self.text_encoder = nn.Linear(3, 3)
        self.unet = nn.Linear(3, 1)
        self.text_share = text_share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unet(x + self.text_share * self.text_encoder(x)).mean()

    def watch(self) -> GradientWatch:
        parts = {"text_encoder": self.text_encoder, "unet": self.unet}
        components = {name: list(part.parameters()) for name, part in parts.items()}
        return GradientWatch(components, {parameter: name for name, parameter in self.named_parameters()})


def learn(model: nn.Module, watch: GradientWatch, updates: int) -> None:
    """Real updates, watched as the trainer has them watched."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(updates):
        model(torch.ones(2, 3)).backward()
        watch.observe()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("applies_at_once", [False, True])
def test_a_resumed_watch_remembers_what_learned_before(applies_at_once: bool) -> None:
    """The text encoder's only gradient was before the state; a fresh watch would refuse the part."""
    model = TwoParts()
    watch, resumed, fresh = model.watch(), model.watch(), model.watch()
    watch.updates = resumed.updates = fresh.updates = 2
    if applies_at_once:
        watch.observe_idle([])
    else:
        learn(model, watch, 1)
    resumed.load_state_dict(watch.state_dict())
    resumed.observe_idle(["text_encoder"])
    fresh.observe_idle(["text_encoder"])
    with pytest.raises(UserError, match="text_encoder"):
        fresh.observe_idle(["text_encoder"])


def test_a_resumed_watch_counts_skipped_updates_on() -> None:
    watch, resumed = TwoParts().watch(), TwoParts().watch()
    for step in range(MOST_SKIPPED - 1):
        watch.count_skipped(True, ["a.png"], step)
    resumed.load_state_dict(watch.state_dict())
    with pytest.raises(UserError, match="overflowed"):
        resumed.count_skipped(True, ["a.png"], MOST_SKIPPED)


def test_a_resumed_run_is_judged_by_the_weights_it_began_with() -> None:
    weight = nn.Parameter(torch.zeros(3))
    groups = [{"name": "unet", "params": [weight]}]
    began = MovementWatch(groups)
    with torch.no_grad():
        weight.add_(1)
    resumed = MovementWatch(groups)
    with pytest.raises(UserError, match="unet"):
        resumed.refuse_still()
    resumed.load_state_dict(began.state_dict())
    resumed.refuse_still()
    resumed.begin_here()
    with pytest.raises(UserError, match="unet"):
        resumed.refuse_still()


def test_parts_that_learn_pass() -> None:
    model = TwoParts()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learn(model, model.watch(), WATCHED_UPDATES + 2)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_weight_outside_the_computation_is_named_at_the_first_update() -> None:
    model = TwoParts()
    watch = model.watch()
    model.text_encoder.bias.requires_grad_(False)  # so it gets no gradient, as if nothing used it
    with pytest.raises(UserError) as caught:
        learn(model, watch, 1)
    (problem,) = caught.value.problems
    assert problem.what.startswith("text_encoder should train, but 1 of its 2 weights take no part")
    assert problem.what.endswith("for example text_encoder.bias")
    assert "nothing was saved" in problem.fix


def test_a_part_without_gradient_is_named_at_the_last_watched_update() -> None:
    model = TwoParts(text_share=0.0)
    watch = model.watch()
    learn(model, watch, WATCHED_UPDATES - 1)
    with pytest.raises(UserError, match=rf"text_encoder should train .* first {WATCHED_UPDATES} updates") as caught:
        learn(model, watch, 1)
    assert "unet" not in str(caught.value)


def test_all_parts_without_gradient_are_named() -> None:
    model = TwoParts()
    watch = model.watch()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(UserError, match=r"^training: text_encoder and unet should train"):
        for _ in range(WATCHED_UPDATES):
            watch.observe()


def test_zero_gradients_at_the_first_update_only_are_fine() -> None:
    """LoRA's down matrices: behind an up matrix of zeros their first gradient is zero, the second is not."""
    down, up = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
    nn.init.zeros_(up.weight)
    model = nn.Sequential(down, up)
    watch = GradientWatch({"down": [down.weight], "up": [up.weight]}, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first_gradients = []
    for _ in range(WATCHED_UPDATES + 1):
        optimizer.zero_grad()
        (model(torch.ones(2, 3)) - 1).square().mean().backward()
        watch.observe()
        first_gradients.append(bool(down.weight.grad.any()))
        optimizer.step()
    assert first_gradients == [False, True, True, True]


def test_a_resting_part_needs_no_gradient() -> None:
    model = TwoParts()
    watch = model.watch()
    model.text_encoder.requires_grad_(False)
    for _ in range(WATCHED_UPDATES):
        model(torch.ones(2, 3)).backward()
        watch.observe(resting=("text_encoder",))
    assert model.text_encoder.weight.grad is None


def test_parts_without_gradient_are_named_where_gradients_are_gone() -> None:
    watch = TwoParts().watch()
    for _ in range(WATCHED_UPDATES - 1):
        watch.observe_idle(["unet"])
    with pytest.raises(UserError, match=r"unet should train .* \(for example unet\.weight\)"):
        watch.observe_idle(["unet"])
    watch = TwoParts().watch()
    for number in range(WATCHED_UPDATES + 1):
        watch.observe_idle(["unet"] if number == 0 else [])


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(math.nan, 1.0, "loss is"), (math.inf, 1.0, "loss is"), (1.0, math.nan, "gradients are"), (1.0, math.inf, "grad")],
)
def test_an_update_that_would_spoil_the_weights_is_stopped_with_its_pictures(
    loss: float, norm: float, what: str
) -> None:
    files = [f"{number}.png" for number in range(6)]
    refuse_non_finite_update(torch.tensor(2.0), torch.tensor(3.0), files, 6)
    with pytest.raises(UserError, match=f"the {what}.* no longer finite at update 7; its pictures: 0.png") as caught:
        refuse_non_finite_update(torch.tensor(loss), torch.tensor(norm), files, 6)
    assert "3.png and 2 more" in str(caught.value)


def test_a_part_that_kept_its_weights_is_named() -> None:
    model = TwoParts()
    groups = [
        {"name": name, "params": list(part.parameters())}
        for name, part in (("text_encoder", model.text_encoder), ("unet", model.unet))
    ]
    movement = MovementWatch(groups)
    with pytest.raises(UserError, match="text_encoder and unet should train, but kept the weights"):
        movement.refuse_still()
    optimizer = torch.optim.SGD(
        [{"params": model.unet.parameters()}, {"params": model.text_encoder.parameters(), "lr": 0}], lr=0.1
    )
    model(torch.ones(2, 3)).backward()
    optimizer.step()
    with pytest.raises(UserError, match="training: text_encoder should train"):
        movement.refuse_still()
    with torch.no_grad():
        model.text_encoder.bias.add_(1.0)
    movement.refuse_still()


def test_updates_left_out_by_the_scaler_are_counted_in_a_row() -> None:
    watch = TwoParts().watch()
    for step in range(3 * MOST_SKIPPED):
        watch.count_skipped(step % MOST_SKIPPED != 0, ["a.png"], step)
    with pytest.raises(UserError, match=r"overflowed in fp16; its pictures: a\.png"):
        for step in range(MOST_SKIPPED):
            watch.count_skipped(True, ["a.png"], step)


def test_what_happens_after_the_watch_is_not_judged() -> None:
    model = TwoParts()
    watch = model.watch()
    learn(model, watch, WATCHED_UPDATES)
    assert all(parameter.grad is None for parameter in model.parameters())
    watch.observe()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_the_name_of_their_part(bad: float) -> None:
    model = TwoParts()
    groups = [
        {"name": "text_encoder", "params": list(model.text_encoder.parameters())},
        {"name": "unet", "params": list(model.unet.parameters())},
    ]
    refuse_non_finite(groups)
    with torch.no_grad():
        model.unet.bias[0] = bad
    with pytest.raises(UserError, match="the weights of unet are no longer finite, so they were not saved"):
        refuse_non_finite(groups)


def test_a_new_word_that_a_short_run_never_meets_stops_it(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "2_pictures"
    folder.mkdir()
    for number in range(12):
        shutil.copy(photos / "cat.jpg", folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("zumira" if number == 5 else "a cat", encoding="utf-8")
    base = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(tmp_path)]
    base += ["--resolution", "64", "--token_string", "zumira", "--max_data_loader_n_workers", "0"]
    with pytest.raises(UserError, match="embedding should train but received no gradient in the first 2 updates"):
        train_textual_inversion.main([*base, "--output_dir", str(tmp_path / "a"), "--max_train_steps", "2"])
    assert not (tmp_path / "a" / "last.safetensors").exists()
    train_textual_inversion.main([*base, "--output_dir", str(tmp_path / "b"), "--max_train_epochs", "1"])
    assert (tmp_path / "b" / "last.safetensors").exists()


THIRD_PARTY = '''
"""Network modules as others write them, without the optional methods. Older style: two rates, groups without names."""
import torch
from safetensors.torch import save_file

class Shift(torch.nn.Module):
    def __init__(self, flaw):
        super().__init__()
        self.flaw = flaw
        self.text_shift = torch.nn.Parameter(torch.zeros(1))
        self.noise_shift = torch.nn.Parameter(torch.zeros(4, 1, 1))

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        if self.flaw != "forgotten":
            text_encoder.final_layer_norm.register_forward_hook(self.add_to_text)
        unet.conv_out.register_forward_hook(lambda layer, args, output: output + self.noise_shift)

    def add_to_text(self, layer, args, output):
        return output + self.text_shift * (0 if self.flaw == "multiplied_by_zero" else 1)

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
        return [{"params": [self.text_shift], "lr": text_encoder_lr}, {"params": [self.noise_shift], "lr": unet_lr}]

    def save_weights(self, file, dtype, metadata):
        save_file({name: value.to(dtype) for name, value in self.state_dict().items()}, file, metadata)

class NewerShift(Shift):
    """Newer style: three rates, groups with descriptions."""

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, learning_rate):
        return super().prepare_optimizer_params(text_encoder_lr, unet_lr), ["textencoder", "unet"]

def create_network(
    multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, flaw=None, style="older"
):
    return NewerShift(flaw) if style == "newer" else Shift(flaw)
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The words that train the module above, found by its dotted name like any installed one."""
    package = tmp_path / "third_party_networks"
    package.mkdir()
    (package / "shift.py").write_text(THIRD_PARTY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield ["--network_module", "third_party_networks.shift", "--resolution", "64", "--max_train_steps", "4"]
    for name in ("third_party_networks", "third_party_networks.shift"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("forgotten", "1 of its 1 weights take no part in the computation, for example trained.text_shift"),
        ("multiplied_by_zero", "group0 should train but received no gradient in the first 3 updates"),
    ],
)
def test_a_network_that_cannot_learn_stops_the_run_and_nothing_is_saved(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, third_party: list[str], flaw: str, said: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        data = ["--train_data_dir", str(photos), "--network_args", f"flaw={flaw}"]
        run_here(tiny_models["sd1"], data, out, *third_party)
    (problem,) = caught.value.problems
    assert said in problem.what and "group1" not in problem.what
    assert [path.name for path in out.glob("*") if path.suffix != ".jsonl"] == []


@pytest.mark.parametrize("style", ["older", "newer"])
def test_a_network_of_others_trains_at_its_rates_and_saves(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, third_party: list[str], style: str
) -> None:
    words = ["--network_args", f"style={style}", "--text_encoder_lr", "2e-3", "--unet_lr", "5e-3"]
    tensors = run_here(tiny_models["sd1"], ["--train_data_dir", str(photos)], tmp_path, *third_party, *words)
    # Adam's first steps go by about the rate each, so four of them show which rate was whose
    assert 1e-3 < float(tensors["text_shift"].abs().max()) <= 4.1 * 2e-3
    assert 4.1 * 2e-3 < float(tensors["noise_shift"].abs().max()) <= 4.1 * 5e-3
    with safe_open(str(tmp_path / "last.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "third_party_networks.shift"
    assert (metadata["ss_text_encoder_lr"], metadata["ss_unet_lr"]) == ("0.002", "0.005")
