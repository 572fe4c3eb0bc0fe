"""The models that are known by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparsehpc.core.spec import DTYPES
from sparsehpc.models.shipped import find_shipped, shipped_models
from sparsehpc.models.snapshot import structure_of

# params_total, prunable, attention FLOPs per token of context. OPT and Pythia as their papers and hub pages count them.
FACTS = {
    "smollm2-135m": (134_515_008, 106_168_320, 69_120),
    "facebook/opt-125m": (125_239_296, 84_934_656, 36_864),
    "facebook/opt-350m": (331_196_416, 301_989_888, 98_304),
    "facebook/opt-1.3b": (1_315_758_080, 1_207_959_552, 196_608),
    "EleutherAI/pythia-70m": (70_426_624, 18_874_368, 12_288),
    "EleutherAI/pythia-160m": (162_322_944, 84_934_656, 36_864),
    "EleutherAI/pythia-410m": (405_334_016, 301_989_888, 98_304),
    "EleutherAI/pythia-1b": (1_011_781_632, 805_306_368, 131_072),
}


@pytest.mark.parametrize("model", FACTS)
def test_sizes(home, model):
    structure = structure_of(model)
    prunable = sum(p.numel for p in structure.prunable(("attention", "mlp")))
    assert (structure.params_total, prunable, structure.attention_flops_per_context_token) == FACTS[model]
    assert structure_of(f"random:{model}").parameters == structure.parameters


def test_groups_of_opt_125m(home):
    sums: dict[str, int] = {}
    for parameter in structure_of("opt-125m").parameters:
        sums[parameter.group] = sums.get(parameter.group, 0) + parameter.numel
    assert sums == {
        "embedding": 40_183_296,
        "norm": 38_400,
        "attention": 28_348_416,
        "mlp": 56_669_184,
        "lm_head": 38_608_896,
    }


def test_table_is_whole():
    assert {m.id for m in shipped_models().values()} == set(FACTS)
    for model in shipped_models().values():
        assert model.dtype in DTYPES
        assert bool(model.package) != bool(model.revision)
        assert find_shipped(model.name) is find_shipped(model.id) is model
        assert model.config["architectures"]
    assert find_shipped("opt-125m").revision == "27dcfa74d334bc871f3234de431e71c6eeba5dd6"
    assert find_shipped("pythia-410m").revision == "9879c9b5f8bea9051dcb0e68dff21493d67e9d4f"


@pytest.mark.parametrize("model", sorted(FACTS))
def test_configs_build_the_same_tree_in_transformers(home, model):
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    values = find_shipped(model).config
    with init_empty_weights():
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    built.tie_weights()
    names = [(name, tuple(p.shape)) for name, p in built.named_parameters(remove_duplicate=False)]
    assert [(p.name, p.shape) for p in structure_of(model).parameters] == names


def test_structures_need_no_torch():
    code = (
        "import sys\n"
        "from sparsehpc.models.snapshot import structure_of, is_prepared\n"
        "from sparsehpc.models.sources import offline_preparable\n"
        "assert structure_of('random:pythia-410m').layers == 24\n"
        "assert offline_preparable('random:pythia-410m') and not offline_preparable('facebook/opt-125m')\n"
        "loaded = {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
