"""What the verbs about submitted runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slurm.profile import Profile
    from sparsehpc.core.layout import RunFolder

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def profile_of(run: RunFolder, name: str) -> Profile:
    """Profile that a person names, or the one the last submission used, looked up by name in this user's own folders.

    A profile is code that runs on nodes, so that it is never read from a run folder.
    """
    from slurm.ledger import read_ledger
    from slurm.profile_file import load_profile
    from sparsehpc.core.errors import UserError

    if name:
        return load_profile(name)
    submissions, _ = read_ledger(run)
    used = [item.profile for item in submissions if item.profile]
    if not used:
        raise UserError(f"nothing of {run.root} was submitted yet", "sparsehpc submit STUDY --profile NAME")
    return load_profile(used[-1])
