"""What a study's model id means, and where its snapshot lies: names only, nothing is read but the file system."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

from sparsehpc.core.errors import UserError
from sparsehpc.models.home import model_folder, path_name, safe_name
from sparsehpc.models.shipped import Shipped, find_shipped, shipped_models

Kind = Literal["hub", "package", "gguf", "folder", "random"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_FORMS = "a shipped name ({names}), a hub id OWNER/NAME, a folder, FILE.gguf, or random:NAME or random:FOLDER"
RANDOM = "random:"
#: The name under which the revision of a model that has no branches is remembered.
LOCAL = "local"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model, resolved.

    Parameters
    ----------
    kind
        Which source serves it.
    model
        What a study calls it; a shipped short name becomes the id it stands for.
    revision
        Commit or branch asked for, of a hub model; None elsewhere.
    path
        The local file or folder, absolute; None for hub ids and names.
    shipped
        Entry of the table of known models.
    folder
        Where its snapshots lie under SPARSEHPC_HOME, one folder a revision.
    """

    kind: Kind
    model: str
    revision: str | None
    path: Path | None
    shipped: Shipped | None
    folder: Path

    @property
    def reference(self) -> Path:
        """File that names the revision which a branch or a local source stood for when it was prepared."""
        return self.folder / "refs" / safe_name(self.revision or LOCAL)

    def config(self) -> dict[str, Any] | None:
        """config.json where it can be had without a snapshot: shipped, or in a local folder or file."""
        if self.shipped is not None:
            return self.shipped.config
        if self.kind in ("folder", "random") and self.path is not None:
            return read_config(self.path)
        if self.kind == "gguf" and self.path is not None:
            from sparsehpc.models.gguf_file import GGUFModel

            return GGUFModel(self.path).config
        return None


def read_config(folder: Path) -> dict[str, Any]:
    """Content of ``config.json`` in a folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from error
    return config


def resolve(model: str, revision: str | None = None) -> Target:
    """Say what a model id means.

    Parameters
    ----------
    model
        Shipped name or id, hub id, folder, ``FILE.gguf``, ``random:NAME`` or ``random:FOLDER``. A name that is both a
        shipped id and a folder is the shipped one; write ``./NAME`` for the folder.
    revision
        Commit or branch of a hub model; None takes the pinned one, else ``main``.

    Raises
    ------
    UserError
        No form fits; near names and the legal forms are given.
    """
    if model.startswith(RANDOM):
        target = _random(model)
    elif shipped := find_shipped(model):
        if shipped.package:
            target = _target("package", shipped.id, shipped=shipped, folder=shipped.name)
        else:
            chosen = _check_revision(revision or shipped.revision)
            return _target("hub", shipped.id, revision=chosen, shipped=shipped, folder=shipped.id)
    elif model.endswith(".gguf"):
        path = _path(model)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        target = _target("gguf", model, path=path, folder=f"gguf-{path_name(path)}")
    elif (path := _path(model)) and (path / "config.json").is_file():
        target = _target("folder", model, path=path, folder=f"folder-{path_name(path)}")
    elif path.is_dir():
        raise UserError(
            f"{path} holds no config.json", "a model folder is one that transformers' save_pretrained writes"
        )
    elif _HUB_ID.fullmatch(model):
        return _target("hub", model, revision=_check_revision(revision or "main"), folder=model)
    else:
        raise UserError(*_unknown(model))
    if revision is not None:
        raise UserError(f"{model} takes no revision (given: {revision!r}); only hub models have one")
    return target


def _random(model: str) -> Target:
    what = model.removeprefix(RANDOM)
    if shipped := find_shipped(what):
        return _target("random", f"{RANDOM}{shipped.name}", shipped=shipped, folder=f"random-{shipped.name}")
    path = _path(what)
    if what and (path / "config.json").is_file():
        return _target("random", model, path=path, folder=f"random-{path_name(path)}")
    problem, hint = _unknown(what)
    raise UserError(f"{problem} (as an untrained model)", f"random: takes a shipped name or a folder; {hint}")


def _target(kind: Kind, model: str, *, folder: str, **rest: Any) -> Target:
    values: dict[str, Any] = {"revision": None, "path": None, "shipped": None, **rest}
    return Target(kind=kind, model=model, folder=model_folder(folder), **values)


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _check_revision(revision: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UserError(f"{revision!r} is no revision: a commit, branch or tag is expected")
    return revision


def _unknown(model: str) -> tuple[str, str]:
    known = list(dict.fromkeys(name for m in shipped_models().values() for name in (m.name, m.id)))
    near = difflib.get_close_matches(model, known, n=2, cutoff=0.6)
    guess = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    forms = _FORMS.format(names=", ".join(shipped_models()))
    return f"unknown model {model!r}{guess}", f"legal: {forms}"
