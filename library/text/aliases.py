"""A word of captions that CLIP does not know: it stands for ids behind those of the vocabulary.

Textual Inversion (Gal et al., "An Image is Worth One Word", 2022) gives such a word one or more vectors of its own.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from library.text.chunks import END_ID

FIRST_NEW_ID = END_ID + 1  # CLIP's vocabulary ends with the end token


@dataclass(frozen=True)
class Alias:
    """The new word, and how many ids it stands for.

    It is found as CLIP reads: whatever its case, and as a whole word: `mira` is in "mira's cat" and in "<mira>", but
    not in "miracle", nor in "mira1".
    """

    word: str
    count: int

    @property
    def ids(self) -> tuple[int, ...]:
        """What each occurrence becomes."""
        return tuple(range(FIRST_NEW_ID, FIRST_NEW_ID + self.count))

    def is_in(self, text: str) -> bool:
        """Whether the word occurs in a caption."""
        return self._pattern.search(unicodedata.normalize("NFC", text)) is not None

    def split(self, text: str) -> list[str]:
        """The text before the first occurrence, between each two, and behind the last."""
        return self._pattern.split(unicodedata.normalize("NFC", text))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        word = unicodedata.normalize("NFC", self.word)
        # a word that begins or ends with a mark, such as <mira>, has its border in itself
        before = r"(?<!\w)" if re.match(r"\w", word) else ""
        behind = r"(?!\w)" if re.search(r"\w\Z", word) else ""
        return re.compile(f"{before}{re.escape(word)}{behind}", re.IGNORECASE)
