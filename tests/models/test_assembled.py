"""Whole models from stored linears: the same logits as zeros in place, saved, loaded, damaged, written plainly."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsehpc
from sparsehpc.compress import Compression
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.formats.base import FORMATS
from sparsehpc.formats.rows import stack_rows, take_rows
from sparsehpc.models.assemble import SharedLinear, assemble
from sparsehpc.models.packed import MANIFEST, PackedModel
from sparsehpc.models.packed_writer import write_plain
from sparsehpc.models.stream import LayerWalk
from sparsehpc.pretrained import compress, read_calibration

MAGNITUDE = Pruning(method="magnitude", pattern="unstructured", sparsity="0.5")
IDS = torch.arange(3, 40)[None]
#: Every product is summed in another order; logits are of order 1 to 10 after three layers in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def quiet(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def build(snapshot, variant="bitmap", pruning=MAGNITUDE, dtype="float32", fuse=True, calibration=None):
    work = Compression(snapshot, pruning, variant, dtype=dtype, calibration=calibration)
    return assemble(snapshot.path, snapshot.structure, dtype, work.sections(), fuse=fuse)


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


@pytest.fixture
def llama(tiny_snapshot):
    return tiny_snapshot(FAMILIES["llama"])


@pytest.fixture
def packed(llama, tmp_path):
    compress(llama, MAGNITUDE, "bitmap", tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("family", FAMILIES)
def test_assembled_logits_equal_zeros_in_place(family, tiny_snapshot):
    snapshot = tiny_snapshot(FAMILIES[family])
    want = logits(build(snapshot, "masked", fuse=False))
    for variant in ("bitmap", "csr16", "csc", "auto"):
        torch.testing.assert_close(logits(build(snapshot, variant)), want, **TOLERANCE)


def test_dense_storage_gives_the_bits_of_transformers(llama):
    whole = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32).eval()
    for parameter in whole.parameters():
        parameter.data = parameter.data.clone()
    built = build(llama, "dense", Pruning(), fuse=False)
    assert torch.equal(logits(built), logits(whole))


def test_bfloat16_models_keep_their_type(llama):
    model = build(llama, "bitmap", dtype="bfloat16")
    assert logits(model).dtype == torch.bfloat16
    want = logits(build(llama, "masked", dtype="bfloat16", fuse=False))
    # bfloat16 keeps 8 bits: activations of three layers differ by some roundings of 2^-8.
    torch.testing.assert_close(logits(model), want, rtol=0.1, atol=0.1)


def test_linears_with_one_input_are_multiplied_at_once(llama):
    model = build(llama)
    shared = [module for module in model.modules() if isinstance(module, SharedLinear)]
    assert len(shared) == 5 * llama.structure.layers
    assert len({id(module.product) for module in shared}) == 2 * llama.structure.layers
    torch.testing.assert_close(logits(model), logits(build(llama, fuse=False)), rtol=1e-6, atol=1e-6)
    # Products of other tokens in between, and one linear asked twice, must not mix.
    attention = model.model.layers[0].self_attn
    x, other = torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    first = attention.q_proj(x)
    attention.q_proj(other)
    assert torch.equal(attention.q_proj(x), first)
    assert not torch.equal(attention.k_proj(other), attention.k_proj(x))


def test_generation_equals_zeros_in_place(llama):
    masked, stored = build(llama, "masked", fuse=False), build(llama, "bitmap")
    tokens = [m.generate(IDS, max_new_tokens=12, do_sample=False, pad_token_id=0) for m in (masked, stored)]
    assert torch.equal(*tokens)


def test_never_two_copies_of_the_model(llama):
    """One section is alive at a time, and the walk holds no more than one layer."""
    work = Compression(llama, MAGNITUDE, "bitmap")
    layers = []
    for section in work.sections():
        layers.append(section.layer)
        size = sum(t.numel() for t in section.plain.values()) + sum(
            s.shape[0] * s.shape[1] for s in section.stored.values()
        )
        assert size < llama.structure.params_total
    assert layers == [0, 1, 2, None]


def test_calibrated_pruning_equals_the_studys(llama, tmp_path):
    """The same masks as the pipeline's walk: calibration goes through pruned layers."""
    draw = Calibration(corpus="python-docs", windows=3, window_tokens=32)
    pruning = Pruning(method="wanda", pattern="unstructured", sparsity="0.5", calibration=draw)
    held_out = Windows(corpus="samples", windows=2, window_tokens=16)
    cell = Cell(model=str(llama.path), pruning=pruning, variant="bitmap", evaluation=held_out)
    text = read_calibration(llama, pruning, held_out)
    sparsehpc.save_pretrained(cell, tmp_path / "packed")

    from sparsehpc.pipeline import run_cells
    from sparsehpc.text.build import evaluation_windows
    from sparsehpc.text.tokenizer import load_tokenizer

    evaluation = evaluation_windows(held_out, load_tokenizer(llama.path), 128)
    results = []
    run_cells(
        [cell],
        llama,
        evaluation,
        {draw: text},
        None,
        scratch=tmp_path,
        finished=lambda _, result: results.append(result),
    )
    rows = results[0].measurements
    rows = [r for r in rows if r.scope == "tensor" and r.metric == "params_nonzero" and r.convention == "unique"]
    nonzero = {r.subject: r.numerator for r in rows}
    for section in PackedModel(tmp_path / "packed").sections():
        for name, stored in section.stored.items():
            assert int((stored.decode() != 0).sum()) == nonzero[name]
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    assert manifest["recipe"]["calibration"]["digest"] == text.digest
    assert str(tmp_path) not in json.dumps(manifest)
    assert str(llama.path) not in json.dumps(manifest)


@pytest.mark.parametrize("form", [name for name in FORMATS.names() if FORMATS.get(name).by_row and name != "nm"])
def test_rows_stack_and_come_apart(form):
    kind = FORMATS.get(form)
    generator = torch.Generator().manual_seed(1)
    parts = []
    for rows in (5, 1, 7):
        weight = torch.randn(rows, 96, generator=generator)
        weight[torch.rand(rows, 96, generator=generator) < 0.6] = 0
        parts.append(kind.encode(weight))
    chosen = FORMATS.get(kind.chosen(parts[0]))
    stack = stack_rows(parts, chosen)
    assert torch.equal(stack.decode(), torch.cat([part.decode() for part in parts]))
    back = take_rows(stack, 5, 6, chosen)
    for name, array in parts[1].components().items():
        assert torch.equal(back.components()[name], array)


def test_columns_are_not_stacked():
    square = FORMATS.get("csc").encode(torch.eye(8))
    assert stack_rows([square, square], FORMATS.get("csc")) is None


def test_files_hold_what_the_accounting_counts(packed, llama):
    manifest = json.loads((packed / MANIFEST).read_text())
    headers = 0
    for name in manifest["files"]:
        with (packed / name).open("rb") as file:
            headers += 8 + int.from_bytes(file.read(8), "little")
    on_disk = sum((packed / name).stat().st_size for name in manifest["files"])
    assert on_disk - headers == manifest["bytes"]["arrays"]
    linears = list(llama.structure.prunable(("attention", "mlp")))
    plain = 4 * (llama.structure.params_total - sum(p.numel for p in linears))
    kept = manifest["weights"]["nonzero"]
    assert kept == sum(p.numel for p in linears) // 2
    # A value per kept weight, whole mask words, an offset per row and one more, and the rest as it was.
    masks = sum(p.shape[0] * -(-p.shape[1] // 64) * 8 + 4 * (p.shape[0] + 1) for p in linears)
    assert manifest["bytes"]["arrays"] == 4 * kept + masks + plain


def test_save_load_save_gives_the_same_bytes(packed, tmp_path):
    model = sparsehpc.from_pretrained(packed)
    manifest = sparsehpc.save_pretrained(model, tmp_path / "again")
    before = json.loads((packed / MANIFEST).read_text())
    assert manifest["files"] == before["files"]
    assert manifest["recipe"] == before["recipe"]
    assert AutoTokenizer.from_pretrained(packed)("ab")["input_ids"]
    assert (packed / "outside.safetensors").stat().st_mode & 0o777 == (packed / MANIFEST).stat().st_mode & 0o777


def test_plain_transformers_opens_what_densify_writes(packed, tmp_path):
    write_plain(tmp_path / "plain", PackedModel(packed), quiet)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(sparsehpc.from_pretrained(packed)), logits(plain), **TOLERANCE)
    weight = plain.model.layers[1].mlp.up_proj.weight
    assert 0 < int((weight == 0).sum()) < weight.numel()


def test_a_head_pruned_apart_from_its_embedding(llama, tmp_path):
    pruning = dataclasses.replace(MAGNITUDE, targets=("attention", "mlp", "lm_head"))
    compress(llama, pruning, "bitmap", tmp_path / "packed")
    loaded = sparsehpc.from_pretrained(tmp_path / "packed")
    write_plain(tmp_path / "plain", PackedModel(tmp_path / "packed"), quiet)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert int((plain.lm_head.weight == 0).sum()) > 0
    assert int((plain.model.embed_tokens.weight == 0).sum()) == 0
    torch.testing.assert_close(logits(loaded), logits(plain), **TOLERANCE)


def test_added_biases_are_kept(llama, tmp_path):
    draw = Calibration(corpus="python-docs", windows=3, window_tokens=32)
    pruning = Pruning(method="flap", pattern="neurons", sparsity="0.25", calibration=draw, targets=("mlp",))
    compress(llama, pruning, "masked", tmp_path / "packed")
    packed = PackedModel(tmp_path / "packed")
    assert packed.added_biases
    assert all(name.endswith("down_proj.bias") for name in packed.added_biases)
    write_plain(tmp_path / "plain", packed, quiet)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert bool((plain.model.layers[0].mlp.down_proj.bias != 0).any())
    torch.testing.assert_close(logits(sparsehpc.from_pretrained(tmp_path / "packed")), logits(plain), **TOLERANCE)


def test_nothing_is_overwritten(packed, llama):
    before = (packed / MANIFEST).read_bytes()
    with pytest.raises(UserError, match="already there"):
        compress(llama, MAGNITUDE, "bitmap", packed)
    assert (packed / MANIFEST).read_bytes() == before
    assert not list(packed.parent.glob(".packed*"))


def damage_truncate(folder: Path) -> None:
    file = folder / "layer-0001.safetensors"
    file.write_bytes(file.read_bytes()[:-16])


def damage_bits(folder: Path) -> None:
    file = folder / "layer-0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


def damage_missing(folder: Path) -> None:
    (folder / "outside.safetensors").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"version": 1')


def damage_format(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    next(iter(manifest["tensors"].values()))["format"] = "zip"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def damage_name(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tensors"]["model.layers.9.mlp.up_proj.weight"] = {"format": "bitmap"}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def damage_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))


DAMAGES = [damage_truncate, damage_bits, damage_missing, damage_manifest, damage_format, damage_name, damage_config]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_one_clear_error(damage, packed):
    damage(packed)
    with pytest.raises(UserError) as caught:
        sparsehpc.from_pretrained(packed)
    assert str(packed) in str(caught.value)


@pytest.mark.parametrize("component", ["values", "mask", "offsets"])
def test_arrays_that_contradict_each_other_are_refused(component, packed):
    """Checksums that were made anew do not help: sizes come from the config, and arrays must agree."""
    file = packed / "layer-0000.safetensors"
    tensors = load_file(file)
    key = f"model.layers.0.mlp.up_proj.weight.{component}"
    array = tensors[key]
    tensors[key] = array[:-1].clone() if component == "values" else array.flip(0).contiguous()
    if component == "mask":
        tensors[key][0] = -1
    save_file(tensors, file)
    from sparsehpc.core.files import sha256_file

    manifest = json.loads((packed / MANIFEST).read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (packed / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="up_proj"):
        sparsehpc.from_pretrained(packed)


def test_other_things_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="cannot be saved"):
        sparsehpc.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "x")


def test_importing_the_package_loads_no_torch():
    code = "import sys, sparsehpc; assert 'torch' not in sys.modules; assert sparsehpc.from_pretrained"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_walk_and_assembled_model_agree(llama):
    """The pipeline evaluates layer by layer what the assembled model runs as a whole."""
    walk = LayerWalk(llama)
    with torch.inference_mode():
        walk.load_outside()
        hidden, call = walk.embed(IDS)
        for layer, section in zip(range(3), Compression(llama, MAGNITUDE, "bitmap").sections(), strict=False):
            walk.load(layer)
            walk.install(section.stored)
            hidden = walk.run(layer, hidden, call)
        walk.load_outside()
        want = walk.head(hidden)
    assert torch.equal(logits(build(llama, fuse=False)), want)


def test_verbs(llama, tmp_path):
    from typer.testing import CliRunner

    from jobs.cli import _add_verbs, app

    _add_verbs()
    runner = CliRunner()
    out = tmp_path / "packed"
    words = ["prune", str(llama.path), "--method", "wanda", "--sparsity", "0.5", "--out", str(out)]
    words += ["--calibration-windows", "2", "--calibration-window-tokens", "32", "--json"]
    result = runner.invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["recipe"]["method"] == "wanda"
    plain = tmp_path / "plain"
    result = runner.invoke(app, ["densify", str(out), "--out", str(plain)], catch_exceptions=False)
    assert result.exit_code == 0
    assert (plain / "model.safetensors").is_file()
    with pytest.raises(UserError) as caught:
        runner.invoke(app, ["prune", str(llama.path), "--method", "wand", "--sparsity", "2", "--pattern", "2:5",
                            "--format", "zip", "--out", str(tmp_path / "x")], catch_exceptions=False)  # fmt: skip
    for word in ("'wand'", "'2:5'", "'zip'"):
        assert word in str(caught.value)
    shutil.rmtree(out)
