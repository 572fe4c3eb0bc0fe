"""Find and read profiles: the user's own and the shipped ones; every problem of a file at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slurm.profile import Job, Limits, Profile
from sparsehpc.core.errors import UserError, UserErrors, unknown

SHIPPED = Path(__file__).parent / "profiles"


def user_folder() -> Path:
    """Where a user's own profiles lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sparsehpc" / "profiles"


def names() -> list[str]:
    """Names of all profiles that can be found: the user's own and the shipped ones."""
    return sorted({path.stem for folder in (user_folder(), SHIPPED) for path in _tomls(folder)})


def load_profile(name: str) -> Profile:
    """Read a profile by name (the user's own folder first, then the shipped ones) or by path."""
    if name.endswith(".toml") or "/" in name:
        return read_profile(Path(name).expanduser())
    for folder in (user_folder(), SHIPPED):
        path = folder / f"{name}.toml"
        if path.is_file():
            return read_profile(path)
    raise UserError(
        unknown("profile", name, names()), "sparsehpc profile probe writes one for the cluster you stand on"
    )


def read_profile(path: Path) -> Profile:
    """Read and check one file; `UserErrors` with every problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the profile {path} cannot be read: {error}") from error
    return parse_profile(text, name=path.stem, where=str(path))


def parse_profile(text: str, *, name: str, where: str) -> Profile:
    """Check the text of a profile; `UserErrors` with every problem."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the profile {where} is not TOML: {error}") from error
    data.setdefault("name", name)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        found = [_problem(item) for item in error.errors(include_url=False)]
        raise UserErrors(f"the profile {where}", found, "docs: the page on clusters lists every key") from None


def _problem(item: Any) -> str:
    location = [str(part) for part in item["loc"] if not str(part).startswith(("function-", "literal["))]
    key = ".".join(part for part in location if part not in ("str", "int", "bool", "[key]"))
    if item["type"] == "extra_forbidden":
        fields: Iterable[str] = ("description", "limits", "job", "class", "name")
        if location[0] == "limits":
            fields = Limits.model_fields
        elif location[0] in ("job", "class"):
            fields = Job.model_fields
        return f"{key}: {unknown('key', location[-1], fields)}"
    message = item["msg"].removeprefix("Value error, ")
    if "expected" in item.get("ctx", {}):
        message = f"legal: {item['ctx']['expected']}"
    return f"{key} is {item['input']!r}; {message[0].lower()}{message[1:]}"


def _tomls(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.toml")) if folder.is_dir() else []
