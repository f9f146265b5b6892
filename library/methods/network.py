"""Training a network module (LoRA and the like) beside frozen models, through the public protocol."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from library.core.atomic_io import write_whole
from library.core.errors import UserError
from library.core.log import get_logger
from library.core.randomness import seed_foreign_draws, seeded_torch
from library.core.tensor_files import made, read_safetensors, write_safetensors
from library.methods.base import TEXT_ENCODER
from library.methods.model_views import text_encoder_view, unet_view
from library.methods.network_module import (
    ARGUMENTS,
    DEFAULT_EXTENSION,
    MODULE,
    ask_module,
    import_network_module,
    is_ours,
    parse_network_args,
    rank_and_alpha,
    without_idle_text_encoder,
)
from library.methods.rates import PartRates
from library.models.precision import in_precision
from library.options.network import NetworkOptions, base_weights_in_force

if TYPE_CHECKING:  # this file is imported before a model is wanted, and diffusers takes seconds
    from library.models.stable_diffusion import StableDiffusion

log = get_logger(__name__)

Views = tuple[nn.Module, nn.Module]  # of the text encoder and of the U-Net
AnswerT = TypeVar("AnswerT")
LimitNorms = Callable[[float, torch.device], tuple[Any, Any, Any]]


class Network:
    """The method of train_network.py."""

    def __init__(
        self, options: NetworkOptions, rates: PartRates, seed: int, unused_text_layers: Sequence[int] = ()
    ) -> None:
        """
        Args:
            rates: of the network's parts; `asked` is for what belongs to neither.
            unused_text_layers: layers of the text encoder that no result depends on (clip skip). What the network has
                for them is kept, as readers expect, but does not train.

        Raises:
            UserError: when the module or its arguments cannot be used; no model is needed to find out.
        """
        self._options = options
        self._rates = rates
        self._seed = seed
        self._unused_text_layers = tuple(unused_text_layers)
        self._module = import_network_module(options.network_module)
        self._arguments = parse_network_args(options.network_args)
        self._network: Any = None
        self._base_networks: list[Any] = []  # what they are attached to may refer to them weakly
        self._start_epoch: Callable[[], object] = _nothing
        self._start_step: Callable[[], object] = _nothing
        self._start_batch: Callable[[int], object] | None = None
        self._limit_norms: LimitNorms | None = None

    @property
    def float32_models(self) -> tuple[str, ...]:
        """None: the network learns beside frozen models."""
        return ()

    def attach(self, models: StableDiffusion) -> nn.Module:
        """Adds the networks that belong to the base model, creates the one to train, gives it the starting weights if
        asked, and attaches it to the models.

        Raises:
            UserError: the module refuses its arguments or cannot do what is asked, or a file does not fit.
        """
        options = self._options
        views = text_encoder_view(models.text_encoder), unet_view(models.unet)
        for file, strength in base_weights_in_force(options):
            self._add_to_base(file, strength, models, views)
            log.info("part of the base model: %s, strength %g", Path(file).name, strength)
        with seeded_torch(self._seed, "network"):
            network = self._create(models.vae, views)
        wanted = not options.network_train_unet_only, not options.network_train_text_encoder_only
        self._ask(MODULE, lambda: network.apply_to(*views, *wanted))
        if options.network_weights is not None:
            where = f"--network_weights {options.network_weights}"
            _refuse_left_over(self._ask(where, lambda: network.load_weights(options.network_weights)), where)
        if hasattr(network, "prepare_grad_etc"):
            self._ask(MODULE, lambda: network.prepare_grad_etc(*views))
        self._probe(network, views)
        self._network = network
        return network

    def _create(self, vae: nn.Module, views: Views) -> Any:
        """A fresh network, or one with the ranks of the file of `--network_weights`."""
        options = self._options
        arguments = {**self._dropout(), **self._arguments}
        if options.dim_from_weights:
            make, file = self._module.create_network_from_weights, options.network_weights
            network, _ = self._ask(f"--network_weights {file}", lambda: make(1.0, file, vae, *views, **arguments))
            return network
        if self._arguments and not is_ours(self._module):
            log.info("%s: %s go to %s unchecked", ARGUMENTS, ", ".join(self._arguments), self._module.__name__)
        rank = rank_and_alpha(self._module, options)
        return self._ask(MODULE, lambda: self._module.create_network(1.0, *rank, vae, *views, **arguments))

    def _ask(self, flag: str, question: Callable[[], AnswerT]) -> AnswerT:
        return ask_module(self._module, self._options, flag, question)

    def _dropout(self) -> dict[str, float]:
        """`--network_dropout` by the name that the module knows it by: `dropout` in LyCORIS."""
        asked = self._options.network_dropout
        if asked is None:
            return {}
        known = inspect.signature(self._module.create_network).parameters
        return {"neuron_dropout" if "neuron_dropout" in known else "dropout": asked}

    def _add_to_base(self, file: str, strength: float, models: StableDiffusion, views: Views) -> None:
        """Makes a trained network a part of the base model.

        Our own are merged into its weights where they can be. Those of others stay beside it, frozen: the merging of
        LyCORIS 4.1 ignores the strength, and counts alpha / dim of LoHa and LoKr twice.
        """
        where, make = f"--base_weights {file}", self._module.create_network_from_weights
        network, weights = self._ask(where, lambda: make(strength, file, models.vae, *views, for_inference=True))
        if is_ours(self._module) and network.is_mergeable():
            network.merge_to(*views, weights, models.unet.dtype, models.unet.device)
            return
        self._ask(where, lambda: network.apply_to(*views, True, True))
        _refuse_left_over(self._ask(where, lambda: network.load_weights(file)), where)
        network.set_multiplier(strength)
        network.to(models.unet.device, models.unet.dtype).requires_grad_(False).eval()
        self._base_networks.append(network)

    def _probe(self, network: Any, views: Views) -> None:
        """What the module has of the optional protocol, asked once."""
        epoch, step = (getattr(network, name, None) for name in ("on_epoch_start", "on_step_start"))
        self._start_epoch = _nothing if epoch is None else lambda: epoch(*views)
        self._start_step = _nothing if step is None else lambda: step(*views)
        self._start_batch = getattr(network, "on_batch_start", None)
        self._limit_norms = getattr(network, "apply_max_norm_regularization", None)
        if self._options.scale_weight_norms is not None and self._limit_norms is None:
            what = f"a network of {self._module.__name__} cannot limit its norms"
            raise UserError.of(what, "--scale_weight_norms", "remove it, or use networks.lora")

    def param_groups(self) -> list[dict[str, Any]]:
        """The network's groups. Newer modules return (groups, descriptions) and take three rates, older ones two.

        Raises:
            UserError: when nothing is left to train.
        """
        prepare = self._network.prepare_optimizer_params
        rates = [self._rates.text_encoder, self._rates.unet]
        if len(inspect.signature(prepare).parameters) > 2:
            rates.append(self._rates.asked)
        answer = self._ask(MODULE, lambda: prepare(*rates))
        groups, names = answer if isinstance(answer, tuple) else (answer, ())
        if not groups:
            raise UserError.of("the network has nothing to train", MODULE, "check the --network_… options")
        wanted = [group.get("name") or (names[i] if i < len(names) else f"group{i}") for i, group in enumerate(groups)]
        idle = self._without_effect()
        named = [
            {"lr": self._rates.asked, **group, "params": [p for p in group["params"] if p not in idle], "name": name}
            for group, name in zip(groups, _distinct([_our_name(name) for name in wanted]), strict=True)
        ]
        learning = [group for group in named if group["params"]]
        if not learning:
            fix = "lower --clip_skip, or train the U-Net as well"
            raise UserError.of("every layer that should train lies behind the one that is used", "--clip_skip", fix)
        return learning

    def _without_effect(self) -> set[nn.Parameter]:
        """Weights of the layers behind the one that clip skip takes; frozen, or engines would wait for gradients."""
        marks = [f"encoder_layers_{layer}_" for layer in self._unused_text_layers]
        idle = {p for name, p in self._network.named_parameters() if any(mark in name for mark in marks)}
        for parameter in idle:
            parameter.requires_grad_(False)
        return idle

    def trains_text_encoder(self, step: int) -> bool:
        """The whole run or never. A module without anything for the text encoder says so: TRAINS_TEXT_ENCODER."""
        return not without_idle_text_encoder(self._options).network_train_unet_only

    def start_epoch(self) -> None:
        """Tells networks that want to know of it."""
        self._start_epoch()

    def before_batch(self, seed: int) -> None:
        """Hands the batch's seed to networks that draw from one. Networks of others draw from torch's global state,
        which nothing else here does: it begins anew with each batch, so that resuming and processes change nothing."""
        self._start_step()
        if self._start_batch is not None:
            self._start_batch(seed)
        elif not is_ours(self._module):
            seed_foreign_draws(seed)

    def after_update(self) -> Mapping[str, float | torch.Tensor]:
        """Limits the norms where asked (`--scale_weight_norms`); returns what that did."""
        limit = self._options.scale_weight_norms
        if limit is None or self._limit_norms is None:
            return {}
        device = next(self._network.parameters()).device
        with torch.no_grad():
            scaled, mean, largest = self._limit_norms(limit, device)
        return {"max_norm/keys_scaled": scaled, "max_norm/average_key_norm": mean, "max_norm/max_key_norm": largest}

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the network file, whole or not at all, whatever the module's own way of writing.

        Raises:
            UserError: a number does not fit the format asked for; the network was saved in float32 instead, for hours
                of training may be in it.
        """
        try:
            if not is_ours(self._module):  # those of others convert without a look
                for name, value in self._network.state_dict().items():
                    made(in_precision(name, value, dtype, path))
            self._write(path, dtype, metadata)
        except UserError as error:
            self._write(path, torch.float32, metadata)
            what = f"{error.problems[0].what}: the trained network was saved in float32 instead"
            raise UserError.of(what, str(path), "--save_precision bf16 or float keeps more range") from None

    def _write(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        def write(temporary: Path) -> None:
            self._network.save_weights(str(temporary), dtype, dict(metadata))
            if not is_ours(self._module) and temporary.suffix == DEFAULT_EXTENSION:
                _write_in_order(temporary)

        write_whole(path, write)


def _write_in_order(path: Path) -> None:
    """Writes a file of others anew, as ours are: they shuffle its header, and equal runs should give equal bytes."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    write_safetensors(path, read_safetensors(path), metadata)


def _nothing() -> None:
    """Where a module has no such function."""


def _our_name(name: str) -> str:
    """A group's name with the parts as we call them; public modules say "textencoder" as well."""
    first, blank, rest = name.partition(" ")
    return f"{TEXT_ENCODER}{blank}{rest}" if first == TEXT_ENCODER.replace("_", "") else name


def _refuse_left_over(answer: Any, where: str) -> None:
    """Modules tell what did not fit as `load_state_dict` does, or as a dict with these two words in its keys.

    Raises:
        UserError: something of the file has no place in the network, or the other way round.
    """
    told = answer if isinstance(answer, Mapping) else getattr(answer, "_asdict", dict)()
    for mark, what in (("unexpected", "of the file have no place in the network"), ("missing", "are not in the file")):
        left = [key for name, keys in told.items() if mark in str(name) for key in keys]
        if left:
            fix = "use the options that it was made with, or --dim_from_weights"
            raise UserError.of(f"{len(left)} tensors {what}, for example {left[0]}", where, fix)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names with numbers behind those that come again: reports, logs and checks go by name."""
    seen = Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return distinct
