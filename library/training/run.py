"""A run that was found to be in order: what the checks hand to those who carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.description.config import Description
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.methods.rates import PartRates
from library.models.identify import ModelIdentity
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.memory import MemoryOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions
from library.options.reg_images import RegImageOptions
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import OutputOptions, TrainingOptions
from library.options.validation import ValidationOptions
from library.training.new_word import NewWord

if TYPE_CHECKING:  # the checks of a run without --vae should not wait for diffusers
    from library.models.vae_source import VaeIdentity


@dataclass(frozen=True)
class OutputFiles:
    """Where the run writes: the trained file (or folder), its running average where one is kept, and the log."""

    result: Path
    log: Path
    average: Path | None = None

    @property
    def copies(self) -> int:
        """How many times the trained weights are written."""
        return 1 if self.average is None else 2


@dataclass(frozen=True)
class RunOptions:
    """The options that every training script has; `rates` are those in force, given or by default."""

    model: ModelOptions
    data: DataOptions
    reg_images: RegImageOptions
    caching: CachingOptions
    text: TextOptions
    training: TrainingOptions
    objective: ObjectiveOptions
    optimizer: OptimizerOptions
    memory: MemoryOptions
    validation: ValidationOptions
    output: OutputOptions
    rates: PartRates


@dataclass(frozen=True)
class BaseModel:
    """The model that training starts from.

    Attributes:
        prediction_type: "epsilon" or "v_prediction", the user's word included.
        repo_id: its name on the Hugging Face Hub, where it comes from there; its weights may still be missing.
        vae: what `--vae` names, or None for the model's own; `vae_name` is what people call it.
    """

    identity: ModelIdentity
    prediction_type: str
    repo_id: str | None = None
    vae: VaeIdentity | None = None
    vae_name: str | None = None


@dataclass(frozen=True)
class Run:
    """What every run has."""

    options: RunOptions
    base: BaseModel
    description: Description
    index: ImageIndex
    placements: Placements
    files: OutputFiles


@dataclass(frozen=True)
class NetworkRun(Run):
    """A run of train_network.py."""

    network: NetworkOptions


@dataclass(frozen=True)
class FullModelRun(Run):
    """A run of train_db.py or fine_tune.py.

    Attributes:
        form: the one of `SAVE_FORMATS` that the trained model gets.
        text_encoder_stops: the updates after which the text encoder stays as it is; None where it trains to the end.
        tracker: the name of its TensorBoard folder.
    """

    saving: ModelSavingOptions
    form: str
    trains_text_encoder: bool
    text_encoder_stops: int | None
    tracker: str


@dataclass(frozen=True)
class EmbeddingRun(Run):
    """A run of train_textual_inversion.py; `notes` are told about the captions."""

    word: NewWord
    notes: tuple[str, ...]
