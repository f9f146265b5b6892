"""The options of a run as a state keeps them, to be compared when the run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from library.options.base import OptionGroup
from library.options.config import ConfigOptions
from library.options.keeping import KeepingOptions
from library.options.logs import LogOptions
from library.options.parse import OptionValues
from library.options.samples import SampleOptions
from library.options.training import OutputOptions
from library.options.upload import UploadOptions
from library.options.write import options_as_dict

_DECIDES_NOTHING: tuple[type[OptionGroup], ...] = (
    *(ConfigOptions, OutputOptions, KeepingOptions, SampleOptions, LogOptions, UploadOptions),
)


def options_record(options: OptionValues) -> Mapping[str, Any]:
    """Names and values of the options that decide what is learned; no secrets."""
    deciding = [group for group in options.groups if not isinstance(group, _DECIDES_NOTHING)]
    return {name: value for group in deciding for name, value in options_as_dict(group).items()}
