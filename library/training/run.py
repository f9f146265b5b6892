"""A run that was found to be in order: what the checks hand to those who carry it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.naming import average_file, last_stem, log_file
from library.data.description.config import Description
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.methods.rates import PartRates
from library.models.identify import ModelIdentity
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.keeping import KeepingOptions
from library.options.logs import LogOptions
from library.options.memory import MemoryOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions
from library.options.reg_images import RegImageOptions
from library.options.samples import SampleOptions
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import OutputOptions, TrainingOptions
from library.options.upload import UploadOptions
from library.options.validation import ValidationOptions
from library.preview.prompts import SamplePrompt
from library.training.checks.new_word import NewWord
from library.training.checks.uploads import UploadTarget
from library.training.resume_point import ResumePoint

if TYPE_CHECKING:  # the checks of a run without --vae should not wait for diffusers
    from library.models.vae_source import VaeIdentity


@dataclass(frozen=True)
class OutputFiles:
    """Where the run writes.

    Attributes:
        folder: the output folder.
        name: `--output_name`, or None.
        extension: of the trained file, ".safetensors" or the like; empty where it is the folder of a model.
        keeps_average: whether a running average is written beside each file.
    """

    folder: Path
    name: str | None
    extension: str
    keeps_average: bool = False

    def of(self, stem: str) -> Path:
        """The trained file (or folder) of this name."""
        return self.folder / f"{stem}{self.extension}"

    @property
    def result(self) -> Path:
        """The trained file at the end of the run."""
        return self.of(last_stem(self.name))

    @property
    def average(self) -> Path | None:
        """Its running average, where one is kept."""
        return average_file(self.result) if self.keeps_average else None

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return log_file(self.folder, self.name)

    @property
    def copies(self) -> int:
        """How many times the trained weights are written at once."""
        return 2 if self.keeps_average else 1


@dataclass(frozen=True)
class RunOptions:
    """The options that every training script has.

    Attributes:
        rates: those in force, given or by default.
        record: every option that decides what is learned, by name, as a state keeps it.
    """

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
    keeping: KeepingOptions
    samples: SampleOptions
    logs: LogOptions
    upload: UploadOptions
    rates: PartRates
    record: Mapping[str, Any]


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
    """What every run has.

    Attributes:
        resume: the state it goes on from; None where it begins anew.
        prompts: of the sample pictures.
        upload: where what is saved is uploaded to; None where it is not.
    """

    options: RunOptions
    base: BaseModel
    description: Description
    index: ImageIndex
    placements: Placements
    files: OutputFiles
    resume: ResumePoint | None
    prompts: tuple[SamplePrompt, ...]
    upload: UploadTarget | None


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
