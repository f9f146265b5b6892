"""Where the dataset report is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option


@dataclass(frozen=True)
class ReportOptions(OptionGroup):
    """Files of tools/dataset_report.py."""

    title: ClassVar[str] = "Report"

    json: str | None = option(None, "write every fact for a program to read", metavar="FILE")
    html: str | None = option(None, "write a page with all pictures, for any browser", metavar="FILE")
