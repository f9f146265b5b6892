"""Hypernetworks as the Web UI has them, behind the public network-module protocol.

Every attention layer of the U-Net makes its keys and values out of a context: the text states, or in self-attention the
picture itself. A hypernetwork has two small MLPs for each width of context; each adds its output to the context, the
one before keys are made, the other before values are. All layers with one width of context share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from library.core.errors import UserError
from library.core.log import get_logger
from networks.dropout import BatchSeed
from networks.hypernetwork_files import FILE_EXTENSION, HypernetworkFile, read_hypernetwork, write_hypernetwork
from networks.hypernetwork_modules import HypernetworkModule, HypernetworkPair
from networks.hypernetwork_structure import ARGUMENTS, Structure, new_structure, parse_arguments, structure_of_file

__all__ = [
    "FILE_EXTENSION",
    "HAS_RANK",
    "LIMITS_NORMS",
    "TRAINS_TEXT_ENCODER",
    "check_options",
    "check_parts",
    "create_network",
    "create_network_from_weights",
]

TRAINS_TEXT_ENCODER = False  # for the host: there is nothing in a hypernetwork for the text encoder
LIMITS_NORMS = False  # it has no `apply_max_norm_regularization`
HAS_RANK = False  # rank and alpha come as they were asked for, None where they were not: there is neither

log = get_logger(__name__)


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a U-Net: its path, what makes its keys and values, and the width of its context."""

    path: str
    to_k: nn.Linear
    to_v: nn.Linear

    @property
    def width(self) -> int:
        """Numbers in each state of the context."""
        return self.to_k.in_features


class HypernetworkNetwork(nn.Module):
    """All modules of a hypernetwork, and the attention layers of the U-Net they change."""

    def __init__(
        self,
        unet: nn.Module,
        structure: Structure,
        widths: tuple[int, ...] | None,
        given: Mapping[str, Any],
        dropout: float | None,
    ) -> None:
        """
        Args:
            unet: nothing happens to it before `apply_to`.
            widths: of contexts; None for all that the U-Net has.
            given, dropout: what was asked for, see `structure_of_file`.

        Raises:
            UserError: no attention layer has a context of such a width.
        """
        super().__init__()
        self._layers = tuple(attention_layers(unet))
        self._given, self._dropout = given, dropout
        self._batch_seed = BatchSeed()
        self._hooks: list[RemovableHandle] = []
        self._multiplier = 1.0
        known = sorted({layer.width for layer in self._layers})
        for width in widths or ():
            if width not in known:
                fix = f"choose of {','.join(map(str, known))}"
                raise UserError.of(f"no attention layer has a context of the width {width}", f"{ARGUMENTS} sizes", fix)
        self.structure = structure
        self.pairs = self._make_pairs(structure, widths or tuple(known))
        for module in self.hypernetwork_modules():
            module.initialise()

    def _make_pairs(self, structure: Structure, widths: tuple[int, ...]) -> nn.ModuleDict:
        return nn.ModuleDict({str(width): HypernetworkPair(width, structure, self._batch_seed) for width in widths})

    def width_pairs(self) -> Iterator[tuple[int, HypernetworkPair]]:
        """The two modules of each width."""
        for width, pair in self.pairs.items():
            if isinstance(pair, HypernetworkPair):
                yield int(width), pair

    def hypernetwork_modules(self) -> Iterator[HypernetworkModule]:
        """Every module."""
        for _, pair in self.width_pairs():
            yield from pair.modules_in_order

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """Changes the U-Net given to `create_network` from now on; a text encoder is never changed.

        Raises:
            UserError: the U-Net shall not be changed, so nothing is left to train.
        """
        if not apply_unet:
            raise _without_unet()
        self.detach()
        for width, pair in self.width_pairs():
            for layer in (layer for layer in self._layers if layer.width == width):
                for letter, target, module in (("k", layer.to_k, pair.keys), ("v", layer.to_v, pair.values)):
                    hook = _change_input(module, f"{layer.path}.{letter}")
                    self._hooks.append(target.register_forward_pre_hook(hook))

    def detach(self) -> None:
        """Leaves the U-Net as it was."""
        while self._hooks:
            self._hooks.pop().remove()

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 equals the base model."""
        self._multiplier = multiplier
        for module in self.hypernetwork_modules():
            module.multiplier = multiplier

    def on_batch_start(self, seed: int) -> None:
        """Fixes the dropout of the coming batch; `seed` below 2**63."""
        self._batch_seed.value = seed

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, learning_rate: float
    ) -> list[dict[str, Any]]:
        """One group: all modules of the U-Net's widths."""
        params = self.get_trainable_params()
        return [{"params": params, "lr": learning_rate if unet_lr is None else unet_lr, "name": "unet"}]

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """All weights that a layer of the U-Net uses train; a file may hold widths of the other family besides."""
        used = {layer.width for layer in self._layers}
        for width, pair in self.width_pairs():
            pair.requires_grad_(width in used)

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Every weight that trains."""
        self.prepare_grad_etc(None, None)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save_weights(self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Writes the Web UI's file, see `networks.hypernetwork_files`."""
        pairs = {width: (pair.keys.state_dict(), pair.values.state_dict()) for width, pair in self.width_pairs()}
        write_hypernetwork(Path(file), self.structure, pairs, dtype, metadata or {})

    def load_weights(self, file: str | Path) -> None:
        """Becomes the hypernetwork of a file, its structure and widths included.

        Raises:
            UserError: it is no hypernetwork, not of this U-Net, or not of the structure that was asked for.
        """
        found = read_hypernetwork(Path(file))
        structure = structure_of_file(self._given, found.structure, str(file), self._dropout)
        _check_sizes(self._given, found, str(file))
        if not {layer.width for layer in self._layers} & found.pairs.keys():
            widths = ", ".join(map(str, found.pairs))
            what = f"it changes contexts of the widths {widths}, and this model has none of them"
            raise UserError.of(what, str(file), "give a hypernetwork that was made for this family of models")
        device = next(self.parameters()).device
        was_applied, was_training = bool(self._hooks), self.training
        self.structure, self.pairs = structure, pairs_of_file(structure, found, str(file), self._batch_seed)
        self.to(device).train(was_training)
        self.set_multiplier(self._multiplier)
        self.prepare_grad_etc(None, None)
        if was_applied:  # the file's widths may be others
            self.apply_to(None, None)

    def is_mergeable(self) -> bool:
        """An MLP is no sum with a weight, so no."""
        return False


def _change_input(
    module: HypernetworkModule, place: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook for `to_k` or `to_v`; it works whoever calls the layer, so any kind of attention will do."""

    def change(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (module(args[0], place), *args[1:])

    return change


def attention_layers(unet: nn.Module) -> Iterator[AttentionLayer]:
    """Every attention layer of a U-Net, self-attention and cross-attention."""
    for path, part in unet.named_modules():
        to_k, to_v = getattr(part, "to_k", None), getattr(part, "to_v", None)
        if isinstance(to_k, nn.Linear) and isinstance(to_v, nn.Linear):
            yield AttentionLayer(path, to_k, to_v)


def pairs_of_file(structure: Structure, found: HypernetworkFile, where: str, batch_seed: BatchSeed) -> nn.ModuleDict:
    """The modules of a file.

    Raises:
        UserError: its tensors are not those of the structure.
    """
    with torch.device("meta"):  # no memory, and no draws from a global state
        plain = {width: HypernetworkPair(width, found.structure, batch_seed) for width in found.pairs}
        asked = {str(width): HypernetworkPair(width, structure, batch_seed) for width in found.pairs}
    for width, states in found.pairs.items():
        modules = zip(plain[width].modules_in_order, asked[str(width)].modules_in_order, states, strict=True)
        for module, wanted, tensors in modules:
            shapes = {name: value.shape for name, value in module.state_dict().items()}
            if shapes != {name: value.shape for name, value in tensors.items()}:
                what = f"its tensors for the width {width} are not those of its own layer_structure and activation_func"
                raise UserError.of(what, where, "give a hypernetwork of this program or of the Web UI")
            # asked for with another dropout, layers have other numbers, but the same order
            named = dict(zip(wanted.state_dict(), (tensors[name] for name in shapes), strict=True))
            wanted.load_state_dict(named, assign=True)
    return nn.ModuleDict(asked)


def _without_unet() -> UserError:
    what = "a hypernetwork changes the U-Net alone, so nothing would be trained"
    return UserError.of(what, "--network_train_text_encoder_only", "leave it out")


def _check_sizes(given: Mapping[str, Any], found: HypernetworkFile, where: str) -> None:
    if "sizes" in given and set(given["sizes"]) != set(found.pairs):
        asked, there = (",".join(map(str, sorted(sizes))) for sizes in (given["sizes"], found.pairs))
        raise UserError.of(f"sizes={asked} is asked for, and {where} has {there}", ARGUMENTS, "leave it out")


def check_options(
    network_dim: int | None,
    network_args: Mapping[str, str],
    weights: Path | None,
    network_alpha: float | None = None,
) -> None:
    """Looks at the options before any model is loaded; the host calls it where a module has it.

    Raises:
        UserError: for a rank, an alpha, an argument that does not exist or would do nothing, or a file that does not
            fit.
    """
    if network_dim is not None:
        what = f"a hypernetwork has no rank, and {network_dim} is asked for"
        raise UserError.of(what, "--network_dim", "leave it out; --network_args layer_structure=1,2,1 says its widths")
    if network_alpha is not None:
        raise UserError.of("a hypernetwork has no alpha", "--network_alpha", "leave it out")
    given = parse_arguments(network_args)
    new_structure(given)  # with weights as well: they come after the network was made
    if weights is None:
        return
    found = read_hypernetwork(weights)
    structure = structure_of_file(given, found.structure, str(weights), None)
    _check_sizes(given, found, str(weights))
    pairs_of_file(structure, found, str(weights), BatchSeed())


def check_parts(network_args: Mapping[str, str], text_encoder: bool, unet: bool) -> None:
    """Looks at which parts shall train, before any model is loaded.

    Raises:
        UserError: the U-Net shall not.
    """
    if not unet:
        raise _without_unet()


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **network_args: str,
) -> HypernetworkNetwork:
    """A fresh hypernetwork for all widths of context of the U-Net (protocol).

    Args:
        neuron_dropout: share dropped behind inner layers.

    Raises:
        UserError: see `check_options`; or a width does not exist.
    """
    check_options(network_dim, network_args, None, network_alpha)
    given = parse_arguments(network_args)
    structure = new_structure(given, neuron_dropout)
    network = HypernetworkNetwork(unet, structure, given.get("sizes"), given, neuron_dropout)
    network.set_multiplier(multiplier)
    return network


def create_network_from_weights(
    multiplier: float,
    file: str | Path,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[HypernetworkNetwork, dict[str, Tensor]]:
    """The hypernetwork of a file, its weights in place, and these weights by the network's own names (protocol).

    Args:
        weights_sd: not looked at: the structure stands in the file alone.
        kwargs: `neuron_dropout` and arguments, as of `create_network`; they must not contradict the file.
    """
    dropout = kwargs.pop("neuron_dropout", None)
    given = parse_arguments(kwargs)
    with torch.random.fork_rng(devices=[]):  # the draws of the modules that the file's replace
        network = HypernetworkNetwork(unet, Structure(), None, given, dropout)
    network.load_weights(file)
    network.set_multiplier(multiplier)
    if for_inference:
        network.requires_grad_(False).eval()
    return network, network.state_dict()
