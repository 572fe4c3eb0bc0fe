"""``sparsehpc schema``."""

from __future__ import annotations

from jobs.cli import app
from jobs.cli._output import echo_json


@app.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from jobs.study_schema import study_schema

    echo_json(study_schema())
