"""Whether what is saved can be uploaded as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from library.core.errors import Problems
from library.options.keeping import KeepingOptions
from library.options.upload import UploadOptions


@dataclass(frozen=True)
class UploadTarget:
    """A place on the Hugging Face Hub; it holds no token.

    Attributes:
        repo_type: "model", "dataset" or "space".
        folder: inside the repository; empty for its top.
        is_public: of a repository that is made new.
    """

    repo_id: str
    repo_type: str
    folder: str
    is_public: bool
    with_states: bool
    in_background: bool


def check_uploads(options: UploadOptions, keeping: KeepingOptions, problems: Problems) -> UploadTarget | None:
    """The place; None where nothing is to be uploaded."""
    return None
