"""The documentation says what the code does: generated pages are whole, examples run, keys and links exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from jobs import spec
from jobs.study import parse_study
from slurm.resources import Resources
from sparsehpc.core.registry import Registry
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import METRICS
from sparsehpc.pruning.base import METHODS
from sparsehpc.text.base import CORPORA

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    generate.write_pages(folder)
    return folder


def test_every_plugin_is_on_its_page(pages: Path) -> None:
    index = (pages / "methods" / "index.md").read_text()
    for name, method in METHODS:
        assert f"[`{name}`]" in index
        page = (pages / "methods" / f"{name}.md").read_text()
        assert page.count(method.title)
        assert method.citation in page
        assert method.formula in page
        for field in dataclasses.fields(method.options_type):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{field.name}` "))
            assert len(row.split(" | ")[-1]) > 15, f"option {field.name} of {name} is not explained"
    formats = (pages / "formats.md").read_text()
    for name, layout in FORMATS:
        assert f"### `{name}`" in formats
        assert layout.summary in formats
    metrics, corpora = (pages / "metrics.md").read_text(), (pages / "corpora.md").read_text()
    assert all(f"| `{name}` |" in metrics for name, _ in METRICS)
    assert all(f"| `{name}" in corpora for name, _ in CORPORA)


def test_sizes_on_the_page_are_those_of_the_formula(pages: Path) -> None:
    text = (pages / "formats.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `csr` | 1."))
    # 30 % of 3072 x 768 in float32: (4 + 4) bytes per kept weight and 4 per row and one more.
    kept = round(3072 * 768 * 0.7)
    assert float(row.split(" | ")[1]) == round((8 * kept + 4 * 3073) / (4 * 3072 * 768), 3)


def test_pages_are_remade_only_where_they_changed(generate: ModuleType, tmp_path: Path) -> None:
    written = generate.write_pages(tmp_path)
    stale = tmp_path / "methods" / "gone.md"
    stale.write_text("a method that was removed")
    before = {path: path.stat().st_mtime_ns for path in written}
    assert generate.write_pages(tmp_path) == written
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert not stale.exists()


def test_every_key_of_a_study_is_explained() -> None:
    text = (DOCS / "study-file.md").read_text(encoding="utf-8")
    tables = {
        "[study]": spec.StudyTable,
        "[[models]]": spec.ModelTable,
        "[grid]": spec.GridTable,
        "[evaluation]": spec.EvaluationTable,
        "[calibration]": spec.CalibrationTable,
        "[latency]": spec.LatencyTable,
        "[resources.NAME]": Resources,
    }
    sections = dict(re.findall(r"^## `(.*?)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(sections) == set(tables)
    for heading, table in tables.items():
        internal = {"options"} if table is spec.GridTable else {"name"} if table is Resources else set()
        keys = {field.name for field in dataclasses.fields(table)} - internal
        explained = set(re.findall(r"^\| `(\w+)` \|", sections[heading], re.M))
        assert explained == keys, heading


@pytest.mark.parametrize("page", ["study-file.md", "replicate.md"])
def test_study_files_in_the_documentation_are_legal(page: str) -> None:
    (text,) = blocks(page, "toml")
    study = parse_study(text, DOCS / page)
    assert study.name == tomllib.loads(text)["study"]["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path, pages: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if target.startswith(("http://", "https://")):
            continue
        if target.startswith("_generated/"):
            assert (pages / target.removeprefix("_generated/")).is_file(), f"{page.name} links to {target}"
        else:
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


def test_commands_in_the_documentation_exist(pages: Path) -> None:
    verbs = set(re.findall(r"^## `([\w-]+)", (pages / "commands.md").read_text(), re.M))
    shell = [block for page in PAGES for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)]
    named = {verb for block in shell for verb in re.findall(r"\bsparsehpc ([a-z]+)", block)}
    assert named
    assert named <= verbs


def test_numbers_in_the_definitions_are_those_of_the_code() -> None:
    from sparsehpc.behaviour import GENERATED_TOKENS
    from sparsehpc.text.build import COPIED_RUN_TOKENS

    text = " ".join((DOCS / "definitions.md").read_text(encoding="utf-8").split())
    assert f"Greedy continuations, {GENERATED_TOKENS} tokens, of 20 prompts" in text
    assert f"shares {COPIED_RUN_TOKENS} tokens in a row" in text


# ---- the examples of extending.md -----------------------------------------------------------------------------------


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What an example registers is gone afterwards."""
    registries: list[Registry[Any]] = [METHODS, FORMATS, METRICS, CORPORA]
    before = [dict(registry._items) for registry in registries if registry.names()]
    yield
    for registry, items in zip(registries, before, strict=True):
        registry._items.clear()
        registry._items.update(items)


def example(heading: str) -> dict[str, Any]:
    """Run one section's example as a module of its own."""
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section is not None
    found = re.search(r"^```python\n(.*?)^```", section[1], re.M | re.S)
    assert found is not None
    module = ModuleType("documented_example")
    exec(compile(found[1], f"extending.md, {heading}", "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.usefixtures("own_registries")
def test_example_method() -> None:
    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter
    from sparsehpc.pruning.base import Site, make_method

    example("A pruning method")
    method = make_method(Pruning(method="largest", pattern="unstructured", sparsity="0.5"))
    site = Site(Parameter("w", (2, 4), "mlp", "linear", 0, "fc1"), 0)
    weight = torch.tensor([[1.0, -8, 3, 0], [5, -2, 7, 6]])
    # Half of eight: the zero counts, then the three largest go.
    assert method.apply(weight, site, {}).weight.tolist() == [[1, 0, 3, 0], [5, -2, 0, 0]]


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_example_format(dtype: str) -> None:
    import torch

    example("A storage format")
    layout = FORMATS.get("coo")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 13, generator=generator).to(getattr(torch, dtype))
    weight[torch.rand(7, 13, generator=generator) < 0.5] = 0
    stored = layout.encode(weight)
    assert torch.equal(stored.decode(), weight)
    assert stored.nbytes == layout.predicted_bytes(7, 13, int((weight != 0).sum()), dtype)
    again = layout.from_components(dict(stored.components()), (7, 13), weight.dtype)
    assert torch.equal(again.decode(), weight)
    with pytest.raises(ValueError, match="outside"):
        layout.from_components(dict(stored.components()), (2, 13), weight.dtype)
    x = torch.randn(3, 13, generator=generator)
    exact = x.double() @ weight.double().T
    # At most 13 terms summed in float32.
    assert torch.allclose(stored.matmul(x).double(), exact, atol=15 * 2**-24 * float(x.abs().sum()), rtol=0)


@pytest.mark.usefixtures("own_registries")
def test_example_metric() -> None:
    import torch

    from sparsehpc.metrics.base import WindowView
    from sparsehpc.metrics.positions import dense_positions, positions

    example("A metric")
    generator = torch.Generator().manual_seed(0)
    dense, cell = torch.randn(5, 11, generator=generator), torch.randn(5, 11, generator=generator)
    ids = torch.tensor([1, 2, 3, 4, 5])
    reference = dense_positions(dense, ids)
    view = WindowView(3, ids, 9, 4, reference, positions(cell, ids, dense, reference), dense, cell, None)
    (row,) = METRICS.get("worst")().window(view)
    kl = torch.nn.functional.kl_div(
        cell.double().log_softmax(-1), dense.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert row.numerator == pytest.approx(float(kl[:4].max()), rel=1e-12)
    assert (row.scope, row.subject, row.metric, row.reduction, row.unit) == ("window", "3", "kl_max", "max", "nats")


@pytest.mark.usefixtures("own_registries")
def test_example_corpus() -> None:
    from sparsehpc.text.base import corpus_problem, open_corpus

    example("A corpus")
    assert corpus_problem("unicode-names") is None
    corpus = open_corpus("unicode-names")
    assert corpus.documents()[0] == "SPACE"
    assert corpus.text().startswith("SPACE\nEXCLAMATION MARK\nQUOTATION MARK\n")
    assert "Unicode" in corpus.origin()
    assert np.all([name == name.upper() for name in corpus.documents()])
