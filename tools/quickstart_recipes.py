"""What quickstart.py teaches, by which method, and with which command line. Standard library only."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

MODEL = Path("examples/toy_world/toy_world.safetensors")
NAME = "quickstart"  # of the trained file
PICTURES, CLASS_PICTURES, PROMPTS = "pictures", "class_pictures", "prompts.txt"  # in the folder of a run
_REPEATS = 10
_SAMPLED = 4  # times on the way


@dataclass(frozen=True)
class Thing:
    """Something that the toy world does not know.

    Attributes:
        spoken: with its article.
        words: what captions call it.
        new_word: what they call it when it has to be one word that CLIP does not know.
        class_word: the word of the toy world for what resembles it most.
    """

    spoken: str
    words: str
    new_word: str
    class_word: str


THINGS: Mapping[str, Thing] = MappingProxyType(
    {
        "toadstool": Thing("a toadstool", "sks toadstool", "toadstool-x", "heart"),
        "crescent": Thing("a crescent", "sks ring", "crescent-x", "ring"),
        "teal": Thing("teal paint", "sks", "teal-x", "blue"),
        "bricks": Thing("a brick wall", "sks", "bricks-x", "tiles"),
    }
)


@dataclass(frozen=True)
class Recipe:
    """How a method is shown, and how one begins with it on a real model.

    Attributes:
        title: of what is trained, with its article.
        script: of the training.
        steps: updates.
        new_thing: what it can learn here, of `THINGS`: networks that change words alone learn a colour, no new shape.
        words: what its command line says of the method. `{new_word}` and `{class_word}` are those of the thing.
        strength: what the strengths of the picture mean.
        use: where the trained file of a real model goes.
        real: what the command line for a real model says of the method.
        guide: the page that goes on from here.
        ending: of the trained file.
        has_class_pictures: whether pictures of what must not change are trained beside those of the thing.
        takes_new_word: whether the thing has to have a word of its own.
    """

    title: str
    script: str
    steps: int
    new_thing: str
    words: tuple[str, ...]
    strength: str
    use: str
    real: tuple[str, ...]
    guide: str
    ending: str = ".safetensors"
    has_class_pictures: bool = False
    takes_new_word: bool = False


_OF_WHOLE_MODELS = "how far each weight went from the base model to the trained one"
_MODEL_FOLDER = "the folder of checkpoints of your picture program"
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "lora": Recipe(
            title="a LoRA",
            script="train_network.py",
            steps=280,
            new_thing="crescent",
            words=(
                *("--network_dim", "16", "--network_alpha", "16"),
                *("--network_train_unet_only", "--cache_text_encoder_outputs"),
                *("--prior_loss_weight", "0.5", "--learning_rate", "1.5e-3"),
            ),
            strength="the strength at which the file is used",
            use="the folder of LoRA files of your picture program",
            real=("--network_dim", "16", "--network_alpha", "8", "--learning_rate", "1e-4"),
            guide="docs/train_network.md",
            has_class_pictures=True,
        ),
        "dreambooth": Recipe(
            title="a whole model by DreamBooth",
            script="train_db.py",
            steps=300,
            new_thing="crescent",
            words=("--learning_rate", "3e-4", "--stop_text_encoder_training", "0"),
            strength=_OF_WHOLE_MODELS,
            use=_MODEL_FOLDER,
            real=("--reg_data_dir", "my_class_pictures", "--learning_rate", "1e-6"),
            guide="docs/train_db.md",
            has_class_pictures=True,
        ),
        "fine_tuning": Recipe(
            title="a whole model by fine-tuning",
            script="fine_tune.py",
            steps=300,
            new_thing="crescent",
            words=("--learning_rate", "3e-4", "--cache_text_encoder_outputs"),
            strength=_OF_WHOLE_MODELS,
            use=_MODEL_FOLDER,
            real=("--shuffle_caption", "--learning_rate", "5e-6"),
            guide="docs/fine_tune.md",
            has_class_pictures=True,
        ),
        "textual_inversion": Recipe(
            title="a new word by Textual Inversion",
            script="train_textual_inversion.py",
            steps=300,
            new_thing="teal",
            words=(
                *("--token_string", "{new_word}", "--init_word", "{class_word}"),
                *("--num_vectors_per_token", "4", "--learning_rate", "2e-2"),
            ),
            strength="how far its vectors went from the word they began as",
            use="the folder of embeddings of your picture program",
            real=(
                *("--token_string", "mira-x", "--init_word", "cat"),
                *("--num_vectors_per_token", "4", "--learning_rate", "5e-4"),
            ),
            guide="docs/textual_inversion.md",
            takes_new_word=True,
        ),
        "hypernetwork": Recipe(
            title="a hypernetwork",
            script="train_network.py",
            steps=300,
            new_thing="teal",
            words=(
                *("--network_module", "networks.hypernetwork", "--network_args", "activation_func=relu"),
                *("--cache_text_encoder_outputs", "--learning_rate", "5e-3"),
            ),
            strength="the strength at which the file is used",
            use="models/hypernetworks of the Web UI",
            real=(
                *("--network_module", "networks.hypernetwork", "--network_args", "layer_structure=1,2,1"),
                *("activation_func=relu", "is_layer_norm=true", "--learning_rate", "1e-5"),
            ),
            guide="docs/hypernetwork.md",
            ending=".pt",
            has_class_pictures=True,
        ),
    }
)


def word_of(recipe: Recipe, thing: Thing) -> str:
    """What captions and prompts of a run call the thing."""
    return thing.new_word if recipe.takes_new_word else thing.words


def pictures_folder(folder: Path, recipe: Recipe, thing: Thing) -> Path:
    """Where the training pictures of a run lie; its name says how often each is shown, and what it shows."""
    return folder / PICTURES / f"{_REPEATS}_{word_of(recipe, thing)}"


def class_folder(folder: Path, thing: Thing) -> Path:
    """Where the pictures of the class lie, for a recipe that has them."""
    return folder / CLASS_PICTURES / f"1_{thing.class_word}"


def training_arguments(recipe: Recipe, thing: Thing, folder: Path, steps: int) -> list[str]:
    """The command that trains on the toy world, without the Python in front."""
    own = [word.format(new_word=thing.new_word, class_word=thing.class_word) for word in recipe.words]
    beside = ["--reg_data_dir", (folder / CLASS_PICTURES).as_posix()] if recipe.has_class_pictures else []
    return [
        recipe.script,
        "--pretrained_model_name_or_path", MODEL.as_posix(),
        "--train_data_dir", (folder / PICTURES).as_posix(),
        *beside,
        "--resolution", "64",
        "--cache_latents",
        *own,
        "--train_batch_size", "8",
        "--max_train_steps", str(steps),
        "--sample_prompts", (folder / PROMPTS).as_posix(),
        "--sample_at_first",
        "--sample_every_n_steps", str(sample_interval(steps)),
        "--seed", "42",
        "--output_dir", folder.as_posix(),
        "--output_name", NAME,
        "--overwrite",
    ]  # fmt: skip


def sample_interval(steps: int) -> int:
    """Updates between sample pictures."""
    return max(1, -(-steps // _SAMPLED))


def real_arguments(recipe: Recipe) -> list[str]:
    """The same for a real model on a card: a start, to be edited."""
    return [
        recipe.script,
        "--pretrained_model_name_or_path", "models/sd15.safetensors",
        "--train_data_dir", "my_pictures",
        "--resolution", "512",
        "--enable_bucket",
        "--cache_latents",
        *recipe.real,
        "--train_batch_size", "2",
        "--max_train_steps", "1500",
        "--mixed_precision", "fp16",
        "--gradient_checkpointing",
        "--seed", "42",
        "--output_dir", "output/mira",
        "--output_name", "mira",
    ]  # fmt: skip


def format_command(python: str, arguments: Sequence[str], windows: bool) -> str:
    """A command as one types it: on Windows in one line, elsewhere one option a line."""
    if windows:
        return subprocess.list2cmdline([python, *arguments])
    words = [shlex.quote(word) for word in arguments]
    return f"{shlex.quote(python)} " + " ".join(f"\\\n    {word}" if word.startswith("--") else word for word in words)


def next_steps(recipe: Recipe) -> list[str]:
    """What one does after the quickstart, a sentence or two each."""
    name = "10_mira-x cat" if recipe.takes_new_word else "10_mira cat"
    pictures = f"my_pictures/{name}, a caption beside each in a text file of the same name"
    return [
        "Get a Stable Diffusion 1.x or 2.x model as one .safetensors file, for example models/sd15.safetensors.",
        f"Put 15 to 50 pictures of your own into a folder such as {pictures}.",
        "Run the command below. It is made for an NVIDIA card with 8 GB; with --mixed_precision fp16 and"
        " --gradient_checkpointing left out it also runs, very slowly, without one.",
        f"Put the trained file into {recipe.use}.",
        f"{recipe.guide} explains the options; python tools/doctor.py checks card and packages.",
    ]


def on_windows() -> bool:
    """Whether commands are shown as Windows takes them."""
    return os.name == "nt"
