"""Models on the Hugging Face hub: fetched once where there is internet, pinned to the commit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sparsehpc.core.errors import UserError
from sparsehpc.models.folder import build_from, link_or_copy
from sparsehpc.models.snapshot import Snapshot, prepare_command
from sparsehpc.models.target import Target

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def build(target: Target, folder: Path, progress: Callable[[str], object]) -> Snapshot:
    """Fetch a model (or take it from the hub's own cache) and make a snapshot of it in ``folder``."""
    origin, commit = fetch(target, progress)
    return build_from(
        origin,
        folder,
        progress,
        model=target.model,
        revision=commit,
        source={"kind": "hub", "repository": target.model, "asked_for": target.revision},
        place=link_or_copy,
    )


def fetch(target: Target, progress: Callable[[str], object]) -> tuple[Path, str]:
    """Download configuration, tokenizer and weights of one commit into the hub's cache.

    Returns
    -------
    path, commit
        Folder of the files, and the commit that the revision stood for.

    Raises
    ------
    UserError
        The repository or revision does not exist or may not be read, or it is neither cached nor reachable.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub_errors

    unreachable: Exception
    try:
        info = HfApi().model_info(target.model, revision=target.revision)
        names = [file.rfilename for file in info.siblings or ()]
        weights = _SAFETENSORS if any(name.endswith(".safetensors") and "/" not in name for name in names) else _PICKLES
        progress(f"fetching {target.model} at {info.sha}")
        # By the name that was asked for, so that the hub's cache finds it by that name when it is offline.
        path = snapshot_download(target.model, revision=target.revision, allow_patterns=[*_SMALL_FILES, *weights])
        return Path(path), Path(path).name
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"{target.model} is gated: its owner must let you in", "ask on its hub page, then run: hf auth login"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"{target.model} has no revision {target.revision!r} on the hub") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no model {target.model!r} on the hub, or it is private", "check the name, or run: hf auth login"
        ) from error
    except (hub_errors.OfflineModeIsEnabled, hub_errors.HfHubHTTPError, OSError) as error:
        unreachable = error
    except Exception as error:
        if not _is_transport_error(error):
            raise
        unreachable = error
    cached = _cached(target)
    if cached is None:
        first = str(unreachable).strip().partition("\n")[0] or type(unreachable).__name__
        raise UserError(
            f"{target.model} cannot be fetched, and the hub's cache does not hold it: {first}", prepare_command(target)
        ) from unreachable
    progress(f"the hub cannot be reached; taking {target.model} from its cache, {cached}")
    return cached, cached.name


def _cached(target: Target) -> Path | None:
    """Folder of the model in the hub's own cache, if that holds all of its weights in either form."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for weights in (_SAFETENSORS, _PICKLES):
        with contextlib.suppress(LocalEntryNotFoundError):
            patterns = [*_SMALL_FILES, *weights]
            folder = snapshot_download(
                target.model, revision=target.revision, local_files_only=True, allow_patterns=patterns
            )
            if any(any(Path(folder).glob(pattern)) for pattern in weights):
                return Path(folder)
    return None


def _is_transport_error(error: Exception) -> bool:
    """Whether the network failed; the hub library's HTTP client has its own family of errors."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
