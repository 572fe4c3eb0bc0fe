"""Read a study file: every error of it at once, with file, key, legal values and the nearest name."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path

from jobs.spec import Study
from jobs.study_tables import Reader
from sparsehpc.core.errors import UserError, UserErrors, unknown

SHIPPED = Path(__file__).parent / "studies"


def shipped_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_study(name: str) -> Path:
    """Path of a study file, or of a shipped study by its name."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name}.toml"
    if path.name == name and shipped.is_file():
        return shipped
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a study file", "name a TOML file; 'sparsehpc init FILE' writes one")
    raise UserError(
        f"no study file {name!r}, and {unknown('shipped study', path.stem, shipped_studies())}",
        "sparsehpc init FILE writes a commented template",
    )


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Parameters
    ----------
    path
        The TOML file.

    Raises
    ------
    UserErrors
        With every problem of the file; nothing is half accepted.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(
            f"study file {path} cannot be read: {error.strerror}", "sparsehpc init FILE writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"study file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_study(text, path)


def parse_study(text: str, path: Path) -> Study:
    """Check the text of a study file; ``path`` names it in messages and is where its relative paths start."""
    try:
        data = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise UserErrors(f"study file {path}", [f"not valid TOML: {error}"]) from error
    except (ValueError, ArithmeticError) as error:  # TOML sets no bound to a number, Python does
        raise UserErrors(f"study file {path}", ["a number has too many digits or too large an exponent"]) from error
    except RecursionError as error:
        raise UserErrors(f"study file {path}", ["lists or tables are nested too deeply"]) from error
    reader = Reader()
    study = reader.study(data, text, path)
    if reader.problems or study is None:
        raise UserErrors(
            f"study file {path}", reader.problems, "sparsehpc init FILE writes a template with every key explained"
        )
    return study
