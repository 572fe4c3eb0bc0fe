"""The commented study file that ``sparsehpc init`` writes: legal names come from the registries."""

from __future__ import annotations

import re

from jobs.spec import NAME, TARGETS, allocation_names, method_names, pattern_names, variant_names
from sparsehpc.core.spec import DTYPES
from sparsehpc.text.base import corpus_names

_TEXT = """\
# A study of sparsehpc. Show what it would do:  sparsehpc plan {file}
#                       do it here:             sparsehpc run {file}
#                       or on a cluster:        sparsehpc submit {file} --profile PROFILE

[study]
name = "{name}"             # names the run folder runs/{name}
seed = 718                  # of everything random

[[models]]                  # one table a model
id = "smollm2-135m"         # a shipped name, a hub id OWNER/NAME, a folder, FILE.gguf, or random:NAME (untrained)
# revision = "..."          # commit of a hub model
dtype = "float32"           # {dtypes}
resource = "cpu"            # a [resources.NAME] table below

[grid]                      # the product of these lists; write [[grid]] several times for a union of grids
methods = ["magnitude"]     # {methods}
patterns = ["unstructured"] # {patterns}
                            # N:M keeps N of M weights and so fixes the sparsity at 1 - N/M
sparsities = [0.1, 0.3, 0.5]  # fraction of the prunable weights that becomes zero
variants = ["masked", "bitmap", "dense-bf16", "dense-int8", "dense-q4"]
                            # how the pruned weights are stored and run: {variants}
                            # (the dense model is always measured too; in narrower types, lossy, it is what one could
                            # take instead of pruning: once a model, whatever the sparsities)
# targets = ["attention", "mlp"]  # what is pruned: {targets}
# allocation = "default"    # how the zeros are spread over layers: {allocations}
# refit = false             # re-optimise the kept weights
# true_sequential = false   # recompute a layer's statistics after each group of its linears
# Options of a method stand here too, for example for magnitude:
# tie_rule = "index"        # "threshold" prunes every weight at the threshold, so a few more than asked for

[evaluation]                # the text that behaviour is measured on
corpus = "samples"          # {corpora}
windows = 40
window_tokens = 512

# [calibration]             # the text that methods such as wanda learn from
# corpus = "python-docs"
# windows = 32
# window_tokens = 512
# seeds = [0]               # each seed draws other windows, and gives cells of its own

# [latency]                 # time decoding too, against the same model on our own dense kernels
# prompt_tokens = 16
# new_tokens = 32
# repeats = 7

[resources.cpu]             # what one job asks for
cpus = 2
memory_gib = 8
minutes = 30
gpus = 0                    # more than none: the cells run on cuda
# checkpoint_layers = true  # a killed job goes on at its last finished decoder layer
"""


def template(name: str) -> str:
    """Text of a study file called ``name``, which plans as it is."""
    safe = name if re.fullmatch(NAME, name) and ".." not in name else "my-study"
    return _TEXT.format(
        file=f"{safe}.toml",
        name=safe,
        dtypes=" | ".join(DTYPES),
        methods=", ".join(method_names()),
        patterns=", ".join(pattern_names()),
        variants=", ".join(variant_names()),
        targets=", ".join(TARGETS),
        allocations=", ".join(allocation_names()),
        corpora=", ".join(corpus_names()),
    )
