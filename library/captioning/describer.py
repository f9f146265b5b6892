"""What a model that writes texts for pictures must be able to do; the runner does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Decoded = NDArray[np.generic]  # a picture in the form that the model takes


class Describer(Protocol):
    """A model that writes one text for each picture.

    A picture's text must not depend on the pictures that are described with it.
    """

    def read(self, path: Path) -> Decoded:
        """Decodes a picture; called from several threads at once.

        Raises:
            UserError: when the file is no readable picture; it is named.
        """

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        """One line of text for each picture, empty where the model has nothing to say of it.

        It may raise what it likes: the pictures are then given one by one, and those that fail alone are told at the
        end. Where it fails for every one of the first pictures, with something else than a `UserError`, the run stops.

        Args:
            pictures: as `read` gives them, `batch_size` of them or fewer.
            paths: where they come from.
        """

    def why_empty(self) -> tuple[str, str]:
        """Why a picture may have got an empty text, and what to do; called from several threads at once."""

    def joined(self, old: str, new: str) -> str:
        """What a file holds that held `old`, where texts are added to files that are there.

        Joined once more with `new` it must stay the same, so that a run can be repeated. Called from several threads at
        once.

        Args:
            old: first line of the file, not empty.
            new: what `describe` gave, one line, not empty.
        """
