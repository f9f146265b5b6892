"""Hypernetworks: the Web UI's files and arithmetic, against a reader that shares no code with ours."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from library.core.errors import UserError
from library.models import topology
from library.models.load import build_unet
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from networks.hypernetwork import (
    HypernetworkNetwork,
    attention_layers,
    check_options,
    check_parts,
    create_network,
    create_network_from_weights,
)
from tests.networks.hypernetwork_reader import FUNCTIONS, Reader

# every form that differs in names or arithmetic
STRUCTURES: dict[str, dict[str, str]] = {
    "plain": {},
    "relu, layer norm": {"activation_func": "relu", "is_layer_norm": "true"},
    "deep, dropout": {"layer_structure": "1,2,1.5,1", "activation_func": "swish", "dropout_structure": "0,0.2,0,0"},
    "output too": {"activation_func": "tanh", "activate_output": "yes", "use_dropout": "1"},
    "one layer": {"layer_structure": "1,1", "is_layer_norm": "true"},
}


@cache
def made_once(kind: str) -> StableDiffusion:
    return make_tiny_model(kind, seed=0)


def fresh(kind: str) -> StableDiffusion:
    """A model that a test may change: the U-Net is a copy."""
    return replace(made_once(kind), unet=deepcopy(made_once(kind).unet))


@pytest.fixture(params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return fresh(request.param)


@pytest.fixture
def sd1() -> StableDiffusion:
    return fresh("sd1")


def make(model: StableDiffusion, dropout: float | None = None, **arguments: str) -> HypernetworkNetwork:
    torch.manual_seed(0)
    network = create_network(1.0, None, None, model.vae, model.text_encoder, model.unet, dropout, **arguments)
    network.apply_to(model.text_encoder, model.unet)
    return network


def randomise(network: HypernetworkNetwork, std: float = 0.2) -> HypernetworkNetwork:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, std)
    return network


def predict(model: StableDiffusion) -> Tensor:
    torch.manual_seed(2)
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([5, 800])
    states = torch.randn(2, 77, model.text_encoder.config.hidden_size)
    return model.unet(latents, times, states).sample


@torch.no_grad()
def read_by_hand(model: StableDiffusion, file: Path, strength: float = 1.0) -> Tensor:
    usual = model.unet.attn_processors
    model.unet.set_attn_processor(Reader(file, strength))  # type: ignore[arg-type]
    prediction = predict(model)
    model.unet.set_attn_processor(usual)
    return prediction


def modules_of(network: HypernetworkNetwork) -> Iterator[nn.Module]:
    return (layer for module in network.hypernetwork_modules() for layer in module.linear)


# --- arithmetic and files ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("structure", STRUCTURES)
def test_another_reader_gets_the_same_from_the_file(sd1: StableDiffusion, tmp_path: Path, structure: str) -> None:
    base = predict(sd1)
    network = randomise(make(sd1, **STRUCTURES[structure])).eval()
    network.save_weights(tmp_path / "h.pt", None, {})
    for strength in (1.0, 0.4) if structure == "plain" else (1.0,):
        network.set_multiplier(strength)
        ours = predict(sd1)
        network.detach()
        theirs = read_by_hand(sd1, tmp_path / "h.pt", strength)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(ours, base, atol=0.02)
        network.apply_to(sd1.text_encoder, sd1.unet)


@torch.no_grad()
@pytest.mark.parametrize("structure", STRUCTURES)
def test_round_trip_is_exact(sd1: StableDiffusion, tmp_path: Path, structure: str) -> None:
    network = randomise(make(sd1, **STRUCTURES[structure])).eval()
    ours = predict(sd1)
    network.save_weights(tmp_path / "h.pt", torch.float32, {})
    network.detach()
    other = make(sd1).eval()  # takes the structure out of the file
    state = torch.get_rng_state()
    other.load_weights(tmp_path / "h.pt")
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn for it
    assert other.structure == network.structure
    assert torch.equal(predict(sd1), ours)
    other.save_weights(tmp_path / "again.pt", torch.float32, {})
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "h.pt").read_bytes()
    other.detach()
    rebuilt, tensors = create_network_from_weights(0.5, tmp_path / "h.pt", None, [sd1.text_encoder], sd1.unet)
    rebuilt.apply_to(sd1.text_encoder, sd1.unet)
    rebuilt.load_state_dict(tensors)
    half = predict(sd1)
    assert not torch.allclose(half, ours, atol=1e-3)
    rebuilt.set_multiplier(1.0)
    rebuilt.eval()
    assert torch.equal(predict(sd1), ours)


@torch.no_grad()
def test_strength_zero_and_detaching_leave_the_model_alone(model: StableDiffusion) -> None:
    base = predict(model)
    network = randomise(make(model))
    assert not torch.allclose(predict(model), base, atol=0.02)
    network.set_multiplier(0.0)
    assert torch.equal(predict(model), base)
    network.set_multiplier(1.0)
    network.detach()
    assert torch.equal(predict(model), base)


def test_the_file_is_the_web_uis(sd1: StableDiffusion, tmp_path: Path) -> None:
    network = make(sd1, activation_func="relu", is_layer_norm="true", use_dropout="true", layer_structure="1,2,2,1")
    facts = {"ss_output_name": "mira", "ss_steps": "120", "ss_sd_model_name": "sd15.safetensors"}
    network.save_weights(tmp_path / "h.pt", torch.float16, {**facts, "ss_new_sd_model_hash": "0123456789abcdef"})
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    plain = {key: value for key, value in content.items() if type(key) is str}
    assert plain == {
        "name": "mira",
        "step": 120,
        "layer_structure": [1, 2, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": True,
        "weight_initialization": "Normal",
        "use_dropout": True,
        "last_layer_dropout": True,
        "dropout_structure": [0, 0.3, 0.3, 0],
        "activate_output": False,
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "sd15",
    }
    assert [key for key in content if type(key) is int] == [32, 64, 96]
    # linear, relu, layer norm, dropout take a number each; the last linear layer has no relu and no dropout
    names = {f"linear.{n}.{kind}" for n in (0, 2, 4, 6, 8, 9) for kind in ("weight", "bias")}
    for keys, values in (content[32], content[96]):
        assert set(keys) == set(values) == names
    assert content[64][0]["linear.0.weight"].shape == (128, 64)
    assert {t.dtype for pair in (content[32], content[96]) for s in pair for t in s.values()} == {torch.float16}


def test_a_file_without_facts_has_none(sd1: StableDiffusion, tmp_path: Path) -> None:
    make(sd1).save_weights(tmp_path / "h.pt", None, {"ss_sd_model_hash": "deadbeef", "ss_output_name": "None"})
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    told = (content["name"], content["step"], content["sd_checkpoint"], content["sd_checkpoint_name"])
    assert told == ("hypernetwork", 0, "deadbeef", None)
    assert (content["use_dropout"], content["last_layer_dropout"], content["dropout_structure"]) == (
        False,
        False,
        [0] * 3,
    )


@torch.no_grad()
def test_the_oldest_files_are_read(sd1: StableDiffusion, tmp_path: Path) -> None:
    """`linear1`, `linear2`, half precision, no facts at all."""
    torch.manual_seed(3)

    def states(width: int) -> dict[str, Tensor]:
        shapes = {"linear1": (2 * width, width), "linear2": (width, 2 * width)}
        pairs = {f"{name}.weight": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
        biases = {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
        return {name: value.half() for name, value in {**pairs, **biases}.items()}

    old = {32: (states(32), states(32)), 96: (states(96), states(96)), "step": 7, "name": "old"}
    torch.save(old, tmp_path / "old.pt")
    renamed = {"activate_output": True, "activation_func": "linear"}
    for width in (32, 96):
        pair = old[width]
        renamed[width] = tuple(
            {name.replace("linear1", "linear.0").replace("linear2", "linear.1"): v for name, v in states.items()}
            for states in pair  # type: ignore[union-attr]
        )
    torch.save(renamed, tmp_path / "new.pt")
    network = make(sd1)
    network.load_weights(tmp_path / "old.pt")
    assert [width for width, _ in network.width_pairs()] == [32, 96]
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    ours = predict(sd1)
    network.detach()
    torch.testing.assert_close(ours, read_by_hand(sd1, tmp_path / "new.pt"), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_files_without_later_facts_mean_what_the_web_ui_takes_them_for(sd1: StableDiffusion, tmp_path: Path) -> None:
    network = randomise(
        make(sd1, layer_structure="1,2,2,1", activation_func="relu", activate_output="1", use_dropout="1",
             last_layer_dropout="0")
    ).eval()  # fmt: skip
    ours = predict(sd1)
    network.save_weights(tmp_path / "h.pt", None, {})
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    for later in ("activate_output", "dropout_structure", "last_layer_dropout"):
        del content[later]
    torch.save(content, tmp_path / "older.pt")
    network.detach()
    other = make(sd1).eval()
    other.load_weights(tmp_path / "older.pt")
    assert other.structure.activate_output and other.structure.dropout_structure == (0, 0.3, 0, 0)
    assert torch.equal(predict(sd1), ours)


# --- widths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "widths"), [("sd1", {768, 320, 640, 1280}), ("sd2", {1024, 320, 640, 1280})])
def test_default_widths_are_the_web_uis_at_full_size(family: str, widths: set[int]) -> None:
    full = topology.FULL_WIDTHS[family]
    with torch.device("meta"):
        unet = build_unet(topology.unet_config(family, full.unet, full.text))
    layers = list(attention_layers(unet))
    assert len(layers) == 32 and {layer.width for layer in layers} == widths
    with torch.device("meta"):
        network = create_network(1.0, None, None, None, None, unet)
    assert {width for width, _ in network.width_pairs()} == widths


@torch.no_grad()
def test_keys_and_values_have_modules_of_their_own(sd1: StableDiffusion) -> None:
    network = make(sd1, sizes="96", layer_structure="1,1")
    for pair, factor in ((network.pairs["96"].keys, 0.0), (network.pairs["96"].values, 1.0)):
        pair.linear[0].weight.copy_(torch.eye(96) * factor)
        pair.linear[0].bias.zero_()
    attention = sd1.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = torch.ones(1, 2, 96)
    assert torch.equal(attention.to_k(x), functional.linear(x, attention.to_k.weight))
    assert torch.equal(attention.to_v(x), functional.linear(2 * x, attention.to_v.weight))
    plain = sd1.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1  # width 32
    assert torch.equal(plain.to_k(x[..., :32]), functional.linear(x[..., :32], plain.to_k.weight))


def test_widths_that_do_not_exist_are_refused(sd1: StableDiffusion) -> None:
    with pytest.raises(UserError, match=r"sizes: no attention layer has a context of the width 768\n.*32,64,96"):
        make(sd1, sizes="32,768")


def test_a_files_widths_of_another_family_are_kept_but_do_not_train(tmp_path: Path) -> None:
    sd1, sd2 = fresh("sd1"), fresh("sd2")
    randomise(make(sd1)).save_weights(tmp_path / "h.pt", None, {})
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    content[1024] = tuple(
        {name: torch.randn([1024 // 32 * size for size in value.shape]) for name, value in states.items()}
        for states in content[32]
    )
    torch.save(content, tmp_path / "more.pt")
    network = make(sd2)
    network.load_weights(tmp_path / "more.pt")
    groups = network.prepare_optimizer_params(None, None, 1e-3)
    assert {p.shape[-1] for p in groups[0]["params"] if p.dim() == 2} == {32, 64, 96, 128, 192}
    network.save_weights(tmp_path / "again.pt", None, {})
    kept = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(kept[1024][1][name], value) for name, value in content[1024][1].items())
    torch.save({1024: content[1024]}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="widths 1024, and this model has none of them"):
        network.load_weights(tmp_path / "other.pt")


# --- initial values ---------------------------------------------------------------------------------------------------


def test_usual_initial_values_are_the_web_uis(sd1: StableDiffusion) -> None:
    weights = []
    for layer in modules_of(make(sd1, is_layer_norm="true")):
        assert isinstance(layer, nn.Linear | nn.LayerNorm)
        assert not layer.bias.any()
        assert layer.weight.detach().std().item() == pytest.approx(0.01, rel=0.35)
        weights.append(layer.weight.detach().flatten())
    everything = torch.cat(weights)
    assert float(everything.std()) == pytest.approx(0.01, rel=0.02) and abs(float(everything.mean())) < 1e-4


@pytest.mark.parametrize(
    ("name", "uniform", "variance"),
    [
        ("XavierUniform", True, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("xaviernormal", False, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("KaimingUniform", True, lambda fan_in, fan_out: 2 / fan_in),
        ("KaimingNormal", False, lambda fan_in, fan_out: 2 / fan_in),
    ],
)
def test_other_initial_values(sd1: StableDiffusion, tmp_path: Path, name: str, uniform: bool, variance: Any) -> None:
    network = make(sd1, weight_initialization=name, activation_func="relu")
    for layer in modules_of(network):
        if isinstance(layer, nn.Linear):
            fan_out, fan_in = layer.weight.shape
            assert layer.weight.detach().var().item() == pytest.approx(variance(fan_in, fan_out), rel=0.1)
            bound = (3 * variance(fan_in, fan_out)) ** 0.5
            assert (layer.weight.detach().abs().max().item() <= bound) is uniform
            assert not layer.bias.any()
    network.save_weights(tmp_path / "h.pt", None, {})
    assert torch.load(tmp_path / "h.pt", weights_only=True)["weight_initialization"].lower() == name.lower()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_go_by_the_web_uis_names(sd1: StableDiffusion, name: str) -> None:
    network = randomise(make(sd1, activation_func=name, sizes="96"), 1.0)
    keys = network.pairs["96"].keys.linear
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)) / 20
    by_hand = keys[-1](FUNCTIONS[name](keys[0](x)))
    torch.testing.assert_close(network.pairs["96"].keys(x, "") - x, by_hand, atol=1e-4, rtol=1e-4)


# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model: StableDiffusion, network: HypernetworkNetwork, seed: int) -> Tensor:
    network.zero_grad()
    network.on_batch_start(seed)
    predict(model).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def test_checkpointing_changes_nothing_and_dropout_depends_on_the_batch_alone(sd1: StableDiffusion) -> None:
    network = randomise(make(sd1, use_dropout="true", is_layer_norm="true")).train()
    first, again, other = (gradients(sd1, network, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first != 0).float().mean() > 0.9
    sd1.unet.train()
    sd1.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(sd1, network, 1), first, atol=1e-6, rtol=1e-3)


def test_the_share_that_is_dropped_is_the_one_asked_for(sd1: StableDiffusion) -> None:
    for arguments, rate, share in (
        ({"use_dropout": "true"}, None, 0.3),
        ({"dropout_structure": "0,0.6,0"}, None, 0.6),
        ({}, 0.1, 0.1),
    ):
        network = make(sd1, rate, sizes="96", **arguments).train()
        keys = network.pairs["96"].keys
        with torch.no_grad():
            keys.linear[0].weight.zero_()
            keys.linear[0].bias.fill_(1.0)
            keys.linear[2].bias.zero_()
            keys.linear[2].weight.copy_(torch.cat([torch.eye(96), torch.zeros(96, 96)], dim=1))
        x = torch.zeros(300, 96)
        changed = keys(x, "a")
        assert float((changed == 0).float().mean()) == pytest.approx(share, abs=0.01)
        assert torch.allclose(changed[changed != 0], torch.tensor(1 / (1 - share)))
        assert not torch.equal(changed, keys(x, "b"))  # each layer of the U-Net has its own
        assert torch.equal(network.eval().pairs["96"].keys(x, "a"), torch.ones(300, 96))


@torch.no_grad()
@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(2)])
def test_every_kind_of_attention_is_changed(sd1: StableDiffusion, processor: Any) -> None:
    base = predict(sd1)
    randomise(make(sd1), 0.1)
    usual = predict(sd1)
    sd1.unet.set_attn_processor(processor)
    torch.testing.assert_close(predict(sd1), usual, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(usual, base, atol=0.02)


def test_half_precision_models_keep_theirs(sd1: StableDiffusion) -> None:
    randomise(make(sd1))
    attention = sd1.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to(torch.bfloat16)
    assert attention.to_k(torch.ones(1, 2, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        attention.to(torch.float32)
        assert attention.to_k(torch.ones(1, 2, 96)).dtype == torch.bfloat16


def test_the_protocol(sd1: StableDiffusion) -> None:
    network = make(sd1)
    (group,) = network.prepare_optimizer_params(1e-5, None, 1e-3)
    assert (group["name"], group["lr"]) == ("unet", 1e-3)
    assert network.prepare_optimizer_params(1e-5, 3e-4, 1e-3)[0]["lr"] == 3e-4
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert not network.is_mergeable() and not hasattr(network, "apply_max_norm_regularization")
    with pytest.raises(UserError, match="a hypernetwork changes the U-Net alone"):
        network.apply_to(sd1.text_encoder, sd1.unet, True, False)
    check_parts({}, True, True)
    with pytest.raises(UserError, match="a hypernetwork changes the U-Net alone"):
        check_parts({}, True, False)
    with pytest.raises(UserError, match="has no alpha"):
        create_network(1.0, None, 8.0, None, None, sd1.unet)
    before = [hook for part in sd1.text_encoder.modules() for hook in part._forward_pre_hooks]
    assert before == []


def test_numbers_that_do_not_fit_are_saved_in_float32(sd1: StableDiffusion, tmp_path: Path) -> None:
    network = randomise(make(sd1), 1e6)
    network.save_weights(tmp_path / "h.pt", torch.float16, {})
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    assert torch.equal(content[32][0]["linear.0.weight"], network.pairs["32"].keys.linear[0].weight)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation_funk": "relu"}, r"activation_funk is not an argument.*\n.*did you mean activation_func\?"),
        ({"conv_dim": "4"}, "knows layer_structure, activation_func"),
        ({"layer_structure": "1,2"}, "begins and ends with 1"),
        ({"layer_structure": "1,0,1"}, "multiples above 0"),
        ({"layer_structure": "1;2;1"}, "a list of numbers"),
        ({"layer_structure": "1,nan,1"}, "a list of numbers"),
        ({"activation_func": "multiheadattention"}, "is not one of linear, swish"),
        ({"weight_initialization": "Zero"}, "is not one of Normal, XavierUniform"),
        ({"is_layer_norm": "maybe"}, "is not true or false"),
        ({"sizes": "320,320"}, "a list of different widths"),
        ({"activate_output": "true"}, "would do nothing: the activation function is linear"),
        ({"layer_structure": "1,1", "activation_func": "relu"}, "activation_func would do nothing"),
        ({"use_dropout": "true", "last_layer_dropout": "false"}, "use_dropout would do nothing"),
        ({"last_layer_dropout": "true"}, "last_layer_dropout would do nothing: dropout is off"),
        ({"dropout_structure": "0,0.3,0.3,0"}, "does not fit to layer_structure=1,2,1"),
        ({"dropout_structure": "0,0.3,0.3"}, "does not fit"),
        ({"dropout_structure": "0,1,0"}, "does not fit"),
        ({"dropout_structure": "0,0,0"}, "speaks against it"),
        ({"dropout_structure": "0,0.1,0", "use_dropout": "false"}, "and use_dropout speaks against it"),
    ],
)
def test_arguments_are_judged_without_a_model(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_options(None, arguments, None)


def test_a_rank_is_refused() -> None:
    check_options(None, {}, None)
    with pytest.raises(UserError, match="a hypernetwork has no rank, and 8 is asked for"):
        check_options(8, {}, None)


def test_what_is_asked_for_must_be_what_the_file_has(sd1: StableDiffusion, tmp_path: Path) -> None:
    file = tmp_path / "h.pt"
    make(sd1, activation_func="relu", sizes="32,96").save_weights(file, None, {})
    for fitting in ({}, {"activation_func": "relu", "layer_structure": "1,2,1", "sizes": "96,32"}):
        check_options(None, fitting, file)
    for arguments, message in (
        ({"activation_func": "elu"}, "activation_func=elu is asked for, and .*h.pt has relu"),
        ({"layer_structure": "1,3,1"}, "layer_structure=1,3,1 is asked for, and .*h.pt has 1,2,1"),
        ({"is_layer_norm": "true"}, "is_layer_norm=True is asked for"),
        ({"sizes": "32"}, "sizes=32 is asked for, and .* has 32,96"),
        ({"weight_initialization": "Normal"}, "the weights come from a file"),
    ):
        with pytest.raises(UserError, match=message):
            check_options(None, arguments, file)
    for arguments, message in (({"activation_func": "elu"}, "asked for"), ({"sizes": "32"}, "asked for")):
        with pytest.raises(UserError, match=message):
            make(sd1, **arguments).load_weights(file)


@torch.no_grad()
def test_dropout_may_be_added_to_a_file(sd1: StableDiffusion, tmp_path: Path) -> None:
    network = randomise(make(sd1, is_layer_norm="true"))
    ours = predict(sd1)
    network.save_weights(tmp_path / "h.pt", None, {})
    network.detach()
    other = make(sd1, use_dropout="true").eval()
    other.load_weights(tmp_path / "h.pt")
    assert other.structure.dropout_structure == (0, 0.3, 0) and torch.equal(predict(sd1), ours)
    assert "linear.3.weight" in other.pairs["32"].keys.state_dict()
    rebuilt, _ = create_network_from_weights(1.0, tmp_path / "h.pt", None, None, sd1.unet, neuron_dropout=0.1)
    assert rebuilt.structure.dropout_structure == (0, 0.1, 0)
    with pytest.raises(UserError, match="layer_structure=1,3,1 is asked for"):
        create_network_from_weights(1.0, tmp_path / "h.pt", None, None, sd1.unet, layer_structure="1,3,1")


def test_other_files_are_named(sd1: StableDiffusion, tmp_path: Path) -> None:
    file = tmp_path / "h.pt"
    save_file({"emb_params": torch.ones(1, 768)}, str(tmp_path / "e.safetensors"))
    with pytest.raises(UserError, match="this is a Textual Inversion embedding, no hypernetwork"):
        check_options(None, {}, tmp_path / "e.safetensors")
    make(sd1).save_weights(file, None, {})
    whole = torch.load(file, weights_only=True)
    states = whole[32][0]
    for change, message in (
        ({"layer_structure": [1, 3, 1]}, "its tensors for the width 32 are not those of its own layer_structure"),
        ({"layer_structure": "1,2,1"}, "layer_structure is no list of numbers"),
        ({"layer_structure": [1, 2]}, r"layer_structure is \[1, 2\]"),
        ({"activation_func": "magic"}, "its activation function 'magic' is not one of ours"),
        ({"dropout_structure": [0, 2, 0]}, "dropout_structure is"),
        ({32: (states,)}, "the width 32 has not two modules"),
        ({32: (states, {**states, "x": 1})}, "holds more than tensors"),
        ({32: (states, {**states, "linear.0.bias": torch.full((64,), float("nan"))})}, "is not finite"),
    ):
        torch.save({**whole, **change}, file)
        with pytest.raises(UserError, match=message):
            check_options(None, {}, file)
