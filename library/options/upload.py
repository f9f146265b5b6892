"""Copies of what is saved, on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option, secret_option
from library.options.checks import not_blank

REPO_TYPES = ("model", "dataset", "space")

TOKEN_PLACES = "the environment (HF_TOKEN) or stored by `hf auth login`"


@dataclass(frozen=True)
class UploadOptions(OptionGroup):
    """Where saved files are uploaded to, and whether a run resumes from there."""

    title: ClassVar[str] = "Hugging Face Hub"

    huggingface_repo_id: str | None = option(
        None,
        "upload what is saved to this repository; it is made if it is missing",
        check=not_blank,
        metavar="OWNER/NAME",
    )
    huggingface_repo_type: str = option("model", "kind of the repository", choices=REPO_TYPES)
    huggingface_path_in_repo: str | None = option(
        None, "folder inside the repository; default: its top", check=not_blank, metavar="FOLDER"
    )
    huggingface_token: str | None = secret_option("access token", metavar="TOKEN", better=TOKEN_PLACES)
    huggingface_repo_visibility: str | None = option(
        None, "public makes a new repository public; anything else, and nothing, makes it private", metavar="VISIBILITY"
    )
    save_state_to_huggingface: bool = option(
        False, "upload states as well; with --save_state or --save_state_on_train_end"
    )
    resume_from_huggingface: bool = option(
        False, "--resume names a state on the Hub: {repo_id}/{path_in_repo}:{revision}:{repo_type}"
    )
    async_upload: bool = option(
        False, "changes nothing: uploads always run beside the training, each as soon as a file is saved"
    )
