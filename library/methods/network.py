"""Training a network module (LoRA and the like) beside frozen models, through the public protocol."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from library.core.atomic_io import write_whole
from library.core.errors import UserError
from library.core.randomness import seeded_torch
from library.options.network import NetworkOptions

if TYPE_CHECKING:  # this file is imported before a model is wanted, and diffusers takes seconds
    from library.models.stable_diffusion import StableDiffusion


def import_network_module(name: str) -> ModuleType:
    """The module `--network_module` names.

    Raises:
        UserError: when it cannot be imported or does not follow the protocol.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        fix = "networks.lora is built in; others need their package installed"
        raise UserError.of(f"cannot import {name}: {error}", "--network_module", fix) from error
    if not callable(getattr(module, "create_network", None)):
        raise UserError.of(f"{name} has no create_network", "--network_module", "name a network module")
    return module


def parse_network_args(words: tuple[str, ...]) -> dict[str, str]:
    """`key=value` words as a dict.

    Raises:
        UserError: for a word without `=`.
    """
    for word in words:
        if "=" not in word:
            raise UserError.of(f"{word!r} is not key=value", "--network_args", "write key=value without spaces")
    return dict(word.split("=", 1) for word in words)


def check_network_options(options: NetworkOptions) -> None:
    """Everything that can be known of the network before a model is loaded. A module may have more to say about its
    own options in a function `check_options`.

    Raises:
        UserError: when module, arguments or weights cannot be used.
    """
    module = import_network_module(options.network_module)
    arguments = parse_network_args(options.network_args)
    weights = Path(options.network_weights) if options.network_weights is not None else None
    if weights is not None and not weights.is_file():
        raise UserError.of(f"{weights} is not a file", "--network_weights", "check the path")
    check = getattr(module, "check_options", None)
    if check is not None:
        check(options.network_dim, arguments, weights)


class Network:
    """The method of train_network.py."""

    def __init__(
        self, options: NetworkOptions, learning_rate: float, seed: int, unused_text_layers: Sequence[int] = ()
    ) -> None:
        """
        Args:
            unused_text_layers: layers of the text encoder that no result depends on (clip skip). What the network has
                for them is kept, as readers expect, but does not train.

        Raises:
            UserError: when the module or its arguments cannot be used; no model is needed to find out.
        """
        self._options = options
        self._learning_rate = learning_rate
        self._seed = seed
        self._unused_text_layers = tuple(unused_text_layers)
        self._module = import_network_module(options.network_module)
        self._arguments = parse_network_args(options.network_args)
        self._network: Any = None
        self._start_batch: Callable[[int], None] | None = None

    @property
    def float32_models(self) -> tuple[str, ...]:
        """None: the network learns beside frozen models."""
        return ()

    def attach(self, models: StableDiffusion) -> nn.Module:
        """Creates the network, gives it the starting weights if asked, and attaches it to the models."""
        options = self._options
        with seeded_torch(self._seed, "network"):
            network = self._module.create_network(
                1.0,
                options.network_dim,
                options.network_alpha,
                models.vae,
                models.text_encoder,
                models.unet,
                neuron_dropout=options.network_dropout,
                **self._arguments,
            )
        network.apply_to(
            models.text_encoder,
            models.unet,
            not options.network_train_unet_only,
            not options.network_train_text_encoder_only,
        )
        if options.network_weights is not None:
            network.load_weights(options.network_weights)
        if hasattr(network, "prepare_grad_etc"):
            network.prepare_grad_etc(models.text_encoder, models.unet)
        self._start_batch = getattr(network, "on_batch_start", None)
        self._network = network
        return network

    def param_groups(self) -> list[dict[str, Any]]:
        """The network's groups. Newer modules return (groups, descriptions) and take three rates, older ones two.

        Raises:
            UserError: when nothing is left to train.
        """
        options = self._options
        prepare = self._network.prepare_optimizer_params
        rates = [options.text_encoder_lr or self._learning_rate, options.unet_lr or self._learning_rate]
        if len(inspect.signature(prepare).parameters) > 2:
            rates.append(self._learning_rate)
        answer = prepare(*rates)
        groups, names = answer if isinstance(answer, tuple) else (answer, ())
        if not groups:
            raise UserError.of("the network has nothing to train", "--network_module", "check the --network_… options")
        wanted = [group.get("name") or (names[i] if i < len(names) else f"group{i}") for i, group in enumerate(groups)]
        idle = self._without_effect()
        named = [
            {"lr": self._learning_rate, **group, "params": [p for p in group["params"] if p not in idle], "name": name}
            for group, name in zip(groups, _distinct(wanted), strict=True)
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
        """The whole run or never."""
        return not self._options.network_train_unet_only

    def before_batch(self, seed: int) -> None:
        """Hands the batch's seed to networks that draw from one."""
        if self._start_batch is not None:
            self._start_batch(seed)

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the network file, whole or not at all, whatever the module's own way of writing."""
        write_whole(path, lambda temporary: self._network.save_weights(str(temporary), dtype, dict(metadata)))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names with numbers behind those that come again: reports, logs and checks go by name."""
    seen = Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return distinct
