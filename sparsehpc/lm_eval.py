"""Packed models in lm-evaluation-harness (the extra ``lm-eval``): its model ``sparsehpc``.

Importing this module registers the model. As a program it is lm_eval's own command line, with the model registered::

    python -m sparsehpc.lm_eval run --model sparsehpc --model_args pretrained=DIR --tasks lambada_openai
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(f"sparsehpc.lm_eval cannot load lm_eval ({error}): pip install 'sparsehpc[lm-eval]'") from error

import torch
from transformers import AutoTokenizer

from sparsehpc.core.errors import UserError
from sparsehpc.pretrained import from_pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from sparsehpc.models.assemble import Assembled


@register_model("sparsehpc")
class PackedLM(HFLM):  # type: ignore[misc]
    """A folder of `sparsehpc.save_pretrained` or ``sparsehpc prune``, evaluated from its packed weights.

    Requests are batched, cut and scored by lm_eval's own model for transformers; only the products are ours.

    Parameters
    ----------
    pretrained
        The folder; it holds the tokenizer too.
    device
        Where the model runs. ``cuda``, which lm_eval's command line asks for unasked, is the CPU where there is none.
    batch_size, max_batch_size
        Sequences at once, or ``auto`` and the most of them to try.
    max_length
        Longest sequence in tokens; None: what the model reads.
    add_bos_token
        Begin every text with the beginning-of-sequence token; None leaves it to the tokenizer.
    prefix_token_id
        Token that stands before a text without a context; None: beginning, or else end, of sequence.
    softmax_dtype
        Type of log-probabilities, ``float64`` for instance; None: that of the logits.
    truncation
        Cut contexts that are too long to generate from, instead of refusing them.
    fuse, verify
        As for `sparsehpc.from_pretrained`.

    Raises
    ------
    UserError
        The folder holds no packed model, or a damaged one.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        device: str = "cpu",
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        softmax_dtype: str | None = None,
        truncation: bool = False,
        fuse: bool = True,
        verify: bool = True,
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        bos = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        super().__init__(
            from_pretrained(pretrained, device=device, fuse=fuse, verify=verify),
            backend="causal",
            tokenizer=AutoTokenizer.from_pretrained(pretrained, local_files_only=True, trust_remote_code=False, **bos),
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            softmax_dtype=softmax_dtype,
            truncation=truncation,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model: lm_eval's own fields, recipe and formats; no hub is asked."""
        assembled: Assembled = self.model.sparsehpc
        return {
            "model_num_parameters": assembled.structure.params_total,
            "model_dtype": assembled.dtype,
            "model_revision": assembled.recipe.get("revision"),
            "model_sha": assembled.recipe.get("snapshot_digest"),
            "sparsehpc": {"recipe": assembled.recipe, "formats": dict(Counter(assembled.formats.values()))},
        }


def main() -> None:
    """Run lm_eval's command line; a folder that cannot be opened is shown without a traceback."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
