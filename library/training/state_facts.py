"""What a state says of the run that it belongs to, beside the numbers themselves."""

from __future__ import annotations

from typing import Any

from library.training.progress import RunPlan
from library.training.run import Run


def state_facts(run: Run, plan: RunPlan) -> dict[str, Any]:
    """Numbers, texts and tables of them, for JSON: options, pictures, base model and length of the run; no paths and no
    secrets."""
    return {"options": dict(run.options.record), "updates": plan.total_updates, "processes": plan.processes}
