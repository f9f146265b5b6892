"""The method of train_network.py: networks of ours and of others through the public protocol."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from library.core.errors import UserError
from library.core.tensor_files import MODEL_HASH_KEY, data_hash
from library.methods.model_views import text_encoder_view, unet_view
from library.methods.network import Network
from library.methods.network_module import (
    check_network_family,
    check_network_options,
    network_extension,
    network_in_force,
)
from library.methods.rates import PartRates
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.network import NetworkOptions
from networks.lora import create_network

LYCORIS = "lycoris.kohya"
RATES = PartRates(text_encoder=1e-4, unet=1e-3, asked=1e-2)


@cache
def original(kind: str) -> StableDiffusion:
    return make_tiny_model(kind, seed=0)


def tiny(kind: str = "sd1") -> StableDiffusion:
    """A model of one's own; copying takes less time than drawing."""
    model = original(kind)
    parts = {name: copy.deepcopy(getattr(model, name)) for name in ("unet", "text_encoder", "vae")}
    return replace(model, **parts)


def attached(model: StableDiffusion, **options: Any) -> tuple[Network, Any]:
    method = Network(NetworkOptions(**options), RATES, seed=0)
    return method, method.attach(model)


def predict(model: StableDiffusion) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 49408, (1, 77), generator=generator)
    states = model.text_encoder(input_ids=ids).last_hidden_state
    return model.unet(torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([5]), states).sample


def learn(model: StableDiffusion, method: Network, network: nn.Module, updates: int) -> None:
    """Updates that make the output smaller."""
    optimizer = torch.optim.AdamW([{**group, "lr": 1e-2} for group in method.param_groups()])
    network.train()
    method.start_epoch()
    for update in range(updates):
        method.before_batch(update)
        predict(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of ours with convolutions and random weights."""
    model, file = tiny(), tmp_path_factory.mktemp("lora") / "conv.safetensors"
    network = create_network(1.0, 2, 4.0, None, model.text_encoder, model.unet, conv_dim="3")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    network.save_weights(file, None, {})
    return file


# --- networks of others -----------------------------------------------------------------------------------------------


def modules_in(file: Path) -> set[str]:
    return {key.split(".")[0] for key in load_file(str(file))}


@pytest.mark.parametrize(("preset", "count"), [("full", 354), ("full-lin", 302), ("attn-mlp", 264)])
def test_presets_of_lycoris_find_every_layer_once(tmp_path: Path, preset: str, count: int) -> None:
    """Handed a Diffusers U-Net itself, the first two stop: they list the layers of the time embedding twice."""
    method, _ = attached(tiny(), network_module=LYCORIS, network_args=("algo=lokr", f"preset={preset}"))
    method.save(tmp_path / "x.safetensors", torch.float32, {})
    names = modules_in(tmp_path / "x.safetensors")
    assert len(names) == count
    assert len({name for name in names if name.startswith("lora_te_text_model_encoder_layers_")}) == 72
    assert ("lora_unet_time_embedding_linear_1" in names) == (preset != "attn-mlp")


@pytest.mark.parametrize(
    ("algo", "preset"),
    [["loha", "attn-mlp"], ["lokr", "attn-mlp"], pytest.param("locon", "full", marks=pytest.mark.slow)],
)
def test_lycoris_trains_saves_loads_and_serves_as_base(tmp_path: Path, algo: str, preset: str) -> None:
    file, words = tmp_path / "x.safetensors", (f"algo={algo}", f"preset={preset}")
    model = tiny()
    with torch.no_grad():
        base = predict(model)
    method, network = attached(model, network_module=LYCORIS, network_args=words)
    assert [(group["name"], group["lr"]) for group in method.param_groups()] == [("text_encoder", 1e-4), ("unet", 1e-3)]
    learn(model, method, network, updates=1)
    with torch.no_grad():
        trained = predict(model)
    assert (trained - base).abs().max() > 1e-2
    method.save(file, torch.float32, {"ss_network_module": LYCORIS})
    assert all(name.startswith(("lora_te_text_model_", "lora_unet_")) for name in modules_in(file))

    for options in (
        {"network_args": words, "network_weights": str(file)},
        {"network_weights": str(file), "dim_from_weights": True},
        {"network_args": ("algo=lora", "preset=attn-mlp"), "base_weights": (str(file),)},
    ):
        other = tiny()
        _, loaded = attached(other, network_module=LYCORIS, **options)
        loaded.eval()
        with torch.no_grad():
            torch.testing.assert_close(predict(other), trained, atol=1e-4, rtol=0)


def test_lycoris_saves_the_same_bytes_twice(tmp_path: Path) -> None:
    """By itself it writes what it says of the file in another order each time."""
    method, network = attached(tiny(), network_module=LYCORIS, network_args=("algo=loha", "preset=attn-mlp"))
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    metadata = {f"ss_{number}": str(number) for number in range(9)}
    for file in files:
        method.save(file, torch.float16, metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert set(load_file(files[0])) == set(network.state_dict())
    with safe_open(str(files[0]), "pt") as opened:
        kept = opened.metadata()
    assert kept == {**metadata, MODEL_HASH_KEY: data_hash(files[0])}


@torch.no_grad()
def test_a_base_network_of_others_has_the_strength_that_was_asked(tmp_path: Path) -> None:
    model, words = tiny(), ("algo=loha", "preset=attn-mlp")
    method, network = attached(model, network_module=LYCORIS, network_args=words)
    for name, parameter in network.named_parameters():
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    method.save(tmp_path / "x.safetensors", torch.float32, {})
    network.set_multiplier(0.4)
    network.eval()
    wanted = predict(model)
    other = tiny()
    options = {"base_weights": (str(tmp_path / "x.safetensors"),), "base_weights_multiplier": ("0.4",)}
    _, fresh = attached(other, network_module=LYCORIS, network_args=words, **options)
    fresh.eval()
    torch.testing.assert_close(predict(other), wanted, atol=1e-4, rtol=0)
    assert not any("_base" in name for name, _ in fresh.named_parameters())


def test_lycoris_takes_the_dropout_and_what_it_refuses_is_told() -> None:
    model = tiny()
    words = ("algo=loha", "preset=attn-mlp")
    _, network = attached(model, network_module=LYCORIS, network_args=words, network_dropout=0.25)
    assert network.dropout == 0.25
    with pytest.raises(UserError, match=r"lycoris\.kohya refuses: AssertionError"):
        attached(tiny(), network_module=LYCORIS, network_args=("preset=no-such-preset",))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_views_rename_and_compute_the_same(kind: str) -> None:
    model = tiny(kind)
    text, unet = text_encoder_view(model.text_encoder), unet_view(model.unet)
    assert text_encoder_view(text) is text
    layers = len(model.text_encoder.encoder.layers)
    assert (
        dict(text.named_modules())["text_model.encoder.layers.1.mlp.fc1"]
        is model.text_encoder.encoder.layers[1].mlp.fc1
    )
    assert text.config is model.text_encoder.config and len(text.encoder.layers) == layers
    assert [name for name, _ in unet.named_parameters()] == [name for name, _ in model.unet.named_parameters()]
    assert "TimestepEmbedding" not in {type(part).__name__ for part in unet.modules()}
    assert "TimestepEmbedding" in {type(part).__name__ for part in model.unet.modules()}
    assert isinstance(unet, type(model.unet)) and unet.config is model.unet.config
    ids, x, time = torch.arange(77)[None], torch.ones(1, 4, 8, 8), torch.tensor([7])
    states = model.text_encoder(input_ids=ids).last_hidden_state
    assert torch.equal(text(input_ids=ids).last_hidden_state, states)
    assert torch.equal(unet(x, time, states).sample, model.unet(x, time, states).sample)


THIRD_PARTY = '''
import torch

class Told(torch.nn.Module):
    """Writes down what the host calls."""

    def __init__(self, arguments):
        super().__init__()
        self.shift, self.calls, self.arguments = torch.nn.Parameter(torch.zeros(1)), [], arguments

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        self.calls.append(("apply", "text_model.final_layer_norm" in dict(text_encoder.named_modules())))

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, learning_rate):
        other = torch.nn.Parameter(torch.zeros(2))
        groups = [{"params": [self.shift], "betas": (0.5, 0.5)}, {"params": [other], "lr": 2.0}]
        return groups, ["textencoder block 1", "textencoder block 1"]

    def on_epoch_start(self, text_encoder, unet):
        self.calls.append("epoch")

    def on_step_start(self, text_encoder, unet):
        self.calls.append("step")

    def load_weights(self, file):
        return self.load_state_dict({"shift": torch.ones(1), "other": torch.ones(1)}, strict=False)

def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, **arguments):
    return Told({"dim": network_dim, "alpha": network_alpha, **arguments})
'''


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the module above."""
    (tmp_path / "told_by_host.py").write_text(THIRD_PARTY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "told_by_host"
    sys.modules.pop("told_by_host", None)


def test_the_protocol_is_spoken(told: str) -> None:
    method, network = attached(tiny(), network_module=told, network_dropout=0.1)
    assert network.arguments == {"dim": 4, "alpha": 1.0, "dropout": 0.1}
    method.start_epoch()
    method.before_batch(3)
    method.before_batch(4)
    assert network.calls == [("apply", True), "epoch", "step", "step"]
    first, second = method.param_groups()
    assert (first["name"], first["lr"], first["betas"]) == ("text_encoder block 1", RATES.asked, (0.5, 0.5))
    assert (second["name"], second["lr"]) == ("text_encoder block 1#2", 2.0)
    assert method.after_update() == {}


def test_what_a_module_cannot_do_is_told_before_training(told: str, lora: Path) -> None:
    model = tiny()
    with pytest.raises(UserError, match="told_by_host cannot limit its norms"):
        attached(model, network_module=told, scale_weight_norms=1.0)
    with pytest.raises(UserError, match="1 tensors of the file have no place in the network, for example other"):
        attached(model, network_module=told, network_weights=str(lora))
    with pytest.raises(UserError) as caught:
        options = {"network_weights": str(lora), "dim_from_weights": True, "base_weights": (str(lora),)}
        check_network_options(NetworkOptions(network_module=told, **options))
    assert [problem.where for problem in caught.value.problems] == ["--dim_from_weights", "--base_weights"]


CLUMSY = """
def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, flaw=""):
    if flaw == "silent":
        assert network_dim == 77
    return Clumsy(flaw)

def create_network_from_weights(multiplier, file, vae, text_encoder, unet, **kwargs):
    raise RuntimeError("cannot read it")

class Clumsy:
    def __init__(self, flaw):
        self.flaw = flaw

    def apply_to(self, *args):
        if self.flaw == "apply":
            raise IndexError("no such layer")

    def load_weights(self, file):
        raise OSError("the file is odd")
"""


def test_whatever_a_module_of_others_raises_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Path
) -> None:
    (tmp_path / "clumsy_module.py").write_text(CLUMSY, encoding="utf-8")
    (tmp_path / "broken_module.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    model = tiny()
    for options, what, where in (
        ({"network_args": ("flaw=silent",)}, "AssertionError: assert network_dim == 77", "--network_module"),
        ({"network_args": ("flaw=apply",)}, "IndexError: no such layer", "--network_module"),
        ({"network_weights": str(lora)}, "OSError: the file is odd", "--network_weights"),
        ({"network_weights": str(lora), "dim_from_weights": True}, "RuntimeError: cannot read it", "--network_weights"),
        ({"base_weights": (str(lora),)}, "RuntimeError: cannot read it", "--base_weights"),
    ):
        with pytest.raises(UserError) as caught:
            attached(model, network_module="clumsy_module", **options)
        (problem,) = caught.value.problems
        assert problem.what == f"clumsy_module refuses: {what}" and problem.where.startswith(where)
        assert all(word in problem.where for word in options.get("network_args", ()))
    with pytest.raises(UserError, match="cannot import broken_module: division by zero"):
        check_network_options(NetworkOptions(network_module="broken_module"))
    sys.modules.pop("clumsy_module", None)


def test_what_a_module_of_others_would_ignore_is_refused_and_what_is_unchecked_told(
    lora: Path, caplog: pytest.LogCaptureFixture, told: str
) -> None:
    options = {"network_args": ("algo=loha",), "network_dropout": 0.1}
    with pytest.raises(UserError) as caught:
        check_network_options(
            NetworkOptions(network_module=LYCORIS, network_weights=str(lora), dim_from_weights=True, **options)
        )
    assert [problem.where for problem in caught.value.problems] == ["--network_args", "--network_dropout"]
    caplog.set_level("INFO")
    attached(tiny(), network_module=told, network_args=("colour=red", "form=round"))
    assert [r.message for r in caplog.records if "unchecked" in r.message] == [
        f"--network_args: colour, form go to {told} unchecked"
    ]


# --- our own ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_base_weights_are_merged_at_their_strengths(lora: Path) -> None:
    model = tiny()
    _, network = attached(model, network_weights=str(lora), dim_from_weights=True)
    at_full = predict(model)
    network.set_multiplier(0.75)
    at_three_quarters = predict(model)
    for strengths, wanted in (((), at_full), (("0.5", "0.25"), at_three_quarters)):
        files = (str(lora),) * max(1, len(strengths))
        other = tiny()
        _, fresh = attached(other, base_weights=files, base_weights_multiplier=strengths)
        torch.testing.assert_close(predict(other), wanted, atol=1e-4, rtol=0)
        fresh.detach()
        torch.testing.assert_close(predict(other), wanted, atol=1e-4, rtol=0)


def test_ranks_of_the_file_are_taken_and_training_goes_on_from_it(lora: Path, tmp_path: Path) -> None:
    model = tiny()
    more = {"network_dropout": 0.1, "network_args": ("module_dropout=0.2", "loraplus_unet_lr_ratio=3")}
    method, network = attached(model, network_weights=str(lora), dim_from_weights=True, **more)
    start = load_file(str(lora))
    assert all(torch.equal(value, start[key]) for key, value in network.file_tensors().items())
    assert {(m.dropouts.neuron, m.dropouts.module) for m in network.loras()} == {(0.1, 0.2)}
    rates = {group["name"]: group["lr"] for group in method.param_groups()}
    assert rates == {"text_encoder": 1e-4, "unet": 1e-3, "unet plus": pytest.approx(3e-3)}
    learn(model, method, network, updates=1)
    moved = [not torch.equal(value, start[key]) for key, value in network.file_tensors().items() if "weight" in key]
    assert any(moved)


def test_norms_are_limited_after_each_update(lora: Path) -> None:
    options = {"network_weights": str(lora), "dim_from_weights": True}
    method, network = attached(tiny(), scale_weight_norms=0.5, **options)
    numbers = {tag: float(value) for tag, value in method.after_update().items()}
    assert set(numbers) == {"max_norm/keys_scaled", "max_norm/average_key_norm", "max_norm/max_key_norm"}
    assert numbers["max_norm/keys_scaled"] == len(list(network.loras()))
    assert numbers["max_norm/max_key_norm"] == pytest.approx(0.5, rel=1e-4)
    assert attached(tiny(), **options)[0].after_update() == {}


@pytest.mark.parametrize("form", ["ckpt", "pt"])
def test_the_form_is_the_asked_one(tmp_path: Path, form: str) -> None:
    options = NetworkOptions(save_model_as=form)
    assert network_extension(options) == f".{form}" and network_extension(NetworkOptions()) == ".safetensors"
    assert network_extension(NetworkOptions(network_module="no.such")) == ".safetensors"  # told elsewhere, and once
    method, network = attached(tiny(), save_model_as=form)
    method.save(tmp_path / f"x.{form}", torch.float16, {"ss_seed": "1"})
    tensors = torch.load(tmp_path / f"x.{form}", weights_only=True)
    assert set(tensors) == set(network.file_tensors()) and {t.dtype for t in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("module", ["networks.lora", LYCORIS])
def test_numbers_that_do_not_fit_are_saved_in_float32(tmp_path: Path, module: str) -> None:
    words = ("algo=lora", "preset=attn-mlp") if module == LYCORIS else ()
    method, network = attached(tiny(), network_module=module, network_alpha=1e5, network_args=words)
    file = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"alpha holds 100000, and float16 ends at 65504: .* saved in float32 instead"):
        method.save(file, torch.float16, {})
    assert all(torch.isfinite(value).all() for value in load_file(str(file)).values())
    file.unlink()
    if module != LYCORIS:
        with pytest.raises(UserError):
            network.save_weights(file, torch.float16, {})
        assert not file.exists()


def test_a_hypernetwork_has_no_rank_no_alpha_and_no_norms() -> None:
    for options, where in (
        ({"network_dim": 4}, "--network_dim"),
        ({"network_alpha": 1.0}, "--network_alpha"),
        ({"scale_weight_norms": 1.0}, "--scale_weight_norms"),
    ):
        with pytest.raises(UserError) as caught:
            check_network_options(NetworkOptions(network_module="networks.hypernetwork", **options))
        assert [problem.where for problem in caught.value.problems] == [where]
    plain = NetworkOptions(network_module="networks.hypernetwork")
    check_network_options(plain)
    assert network_in_force(plain) == plain
    attached(tiny(), network_module="networks.hypernetwork")


def test_files_are_judged_by_parts_and_family_before_loading(lora: Path) -> None:
    options = NetworkOptions(network_weights=str(lora), dim_from_weights=True, network_train_unet_only=True)
    with pytest.raises(UserError, match="modules for the text encoder, which does not train"):
        check_network_options(options)
    width = original("sd1").unet.config.cross_attention_dim
    check_network_family(options, width)
    with pytest.raises(UserError, match="it was made for text states of the width") as caught:
        check_network_family(replace(options, base_weights=(str(lora),)), width + 1)
    assert [problem.where.split()[0] for problem in caught.value.problems] == ["--base_weights", "--network_weights"]
    with pytest.raises(UserError, match="would be saved as inf"):
        check_network_options(NetworkOptions(network_alpha=1e5), torch.float16)


def test_ranks_in_force(lora: Path, tmp_path: Path) -> None:
    def in_force(**options: Any) -> tuple[int | None, float | None]:
        filled = network_in_force(NetworkOptions(**options))
        return filled.network_dim, filled.network_alpha

    assert in_force() == (4, 1.0)
    assert in_force(network_dim=8, network_alpha=0.0) == (8, 0.0)
    assert in_force(network_weights=str(lora), dim_from_weights=True) == (None, None)  # 2 and 3, 4 and 1
    kept = {key: value for key, value in load_file(str(lora)).items() if "_attn1_" in key}
    save_file(kept, str(tmp_path / "one.safetensors"))
    one = {"network_weights": str(tmp_path / "one.safetensors"), "dim_from_weights": True}
    assert in_force(**one) == (2, 4.0)
    save_file({key: value * ("alpha" not in key) for key, value in kept.items()}, one["network_weights"])
    assert in_force(**one) == (2, 2.0), "an alpha of 0 is the rank"
    save_file({key: value for key, value in kept.items() if "alpha" not in key}, one["network_weights"])
    assert in_force(**one) == (2, 2.0)


@pytest.mark.parametrize(
    ("options", "where", "said"),
    [
        ({"dim_from_weights": True}, "--dim_from_weights", "there is no file to take ranks from"),
        (
            {"network_weights": "LORA", "dim_from_weights": True, "network_dim": 2},
            "--network_dim",
            "come from the file",
        ),
        (
            {"network_weights": "LORA", "dim_from_weights": True, "network_alpha": 2.0},
            "--network_alpha",
            "from the file",
        ),
        ({"network_weights": "LORA"}, "--network_weights", "none are asked for"),
        ({"network_weights": "missing.pt"}, "--network_weights", "missing.pt is not a file"),
        ({"base_weights": ("missing.pt",)}, "--base_weights", "missing.pt is not a file"),
        ({"base_weights_multiplier": ("1",)}, "--base_weights_multiplier", "nothing to merge"),
        (
            {"base_weights": ("LORA",), "base_weights_multiplier": ("1", "2")},
            "--base_weights",
            "1 files and 2 strengths",
        ),
        ({"base_weights": ("LORA",), "base_weights_multiplier": ("x",)}, "--base_weights_multiplier", "not a number"),
        ({"base_weights": ("OTHER",)}, "--base_weights", "holds no LoRA weights"),
        ({"network_args": ("conv_dim",)}, "--network_args", "'conv_dim' is not key=value"),
        ({"network_args": ("conv_dim=1", "conv_dim=2")}, "--network_args", "conv_dim is given twice"),
        ({"network_args": ("conv_dmi=1",)}, "--network_args", "conv_dmi is not an argument"),
        (
            {"network_args": ("conv_dim=1",), "network_train_text_encoder_only": True},
            "--network_args",
            "does not train",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    lora: Path, tmp_path: Path, options: dict[str, Any], where: str, said: str
) -> None:
    save_file({"emb_params": torch.ones(1, 768)}, str(tmp_path / "other.safetensors"))
    files = {"LORA": str(lora), "OTHER": str(tmp_path / "other.safetensors")}

    def real(value: Any) -> Any:
        return tuple(map(real, value)) if isinstance(value, tuple) else files.get(str(value), value)

    with pytest.raises(UserError) as caught:
        check_network_options(NetworkOptions(**{name: real(value) for name, value in options.items()}))
    (problem,) = caught.value.problems
    assert problem.where.startswith(where) and said in problem.what


def test_options_that_fit_pass(lora: Path) -> None:
    check_network_options(NetworkOptions(network_weights=str(lora), dim_from_weights=True))
    check_network_options(NetworkOptions(base_weights=(str(lora),) * 2, base_weights_multiplier=("1", "-0.5")))
    check_network_options(NetworkOptions(network_dim=2, network_weights=str(lora), network_args=("conv_dim=3",)))
