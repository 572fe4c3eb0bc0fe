"""A tokenizer built in place: one token per byte, for untrained models that have none of their own."""

from __future__ import annotations

import json
from pathlib import Path

from sparsehpc.core.errors import UserError

#: Ids that the families' default configs expect of padding and end of text.
SPECIALS = ("<unk>", "<pad>", "</s>")
# Where a vocabulary cannot hold every byte, those of ordinary English text come first.
_COMMON = " etaoinshrdlucmfwygpbvkxqjzETAOINSHRDLUCMFWYGPBVKXQJZ0123456789.,;:!?'\"-()\n"


def write_byte_tokenizer(folder: Path, vocab_size: int, *, add_bos: bool) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of at most ``vocab_size`` tokens.

    Parameters
    ----------
    folder
        Existing folder.
    vocab_size
        Rows of the model's embedding: ids stay below it. Bytes that find no room become ``<unk>``.
    add_bos
        Put ``</s>`` in front of every text, as the tokenizer of OPT does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    if vocab_size <= len(SPECIALS):
        raise UserError(f"vocab_size {vocab_size} is too small for a tokenizer: more than {len(SPECIALS)} are needed")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    common = [level.pre_tokenize_str(character)[0][0] for character in _COMMON]
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(common))
    tokens = [*SPECIALS, *common, *rest][:vocab_size]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", SPECIALS.index("</s>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "bos_token": "</s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
