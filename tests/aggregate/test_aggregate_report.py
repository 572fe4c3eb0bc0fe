"""Figures and the report: what is drawn, what is said, what must not be in it."""

from __future__ import annotations

import getpass
import hashlib
import html.parser
import math
from pathlib import Path

import matplotlib.image
import pytest

from aggregate.api import aggregate_run
from aggregate.figures import FIGURES, draw_figures
from aggregate.figures.data import Subject, load
from aggregate.figures.style import label, looks, number, percent
from aggregate.private import public, scrub
from aggregate.report import markdown, write_report
from aggregate.report.definitions import DEFINITIONS
from aggregate.report.phrases import against, share, signed
from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder

HOSTILE = "<script>alert(1)</script>$\\frac{1}{0}$ \N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-6A21}|`*[x](y)`&amp;"


class Page(html.parser.HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data.replace("\u00a0", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, synthetic) -> RunFolder:
    small = synthetic.Shape(2, 16, 32, 64, 16, source_bytes=9000)
    random = synthetic.Shape(2, 16, 32, 64, 16, biases=True, trained=False, source_bytes=9000)
    root = tmp_path_factory.mktemp("two") / "run"
    run = synthetic.write_run(root, {"tiny": small, "random:tiny": random}, sparsities=("0.3", "0.5"), windows=6)
    aggregate_run(run)
    return run


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Text is looked at; figures take most of the time, and Plotly's script holds every word."""
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    monkeypatch.setattr("aggregate.report._plotly", lambda: "")


#: These runs were not timed: what shows time is not drawn.
UNTIMED = [figure for figure in FIGURES if figure.NAME not in ("speed", "time-pareto")]


def test_every_figure_of_every_model_as_png_and_svg(two_models):
    run = two_models
    names = {path.name for path in run.figures.iterdir()}
    slugs = [Subject(model, "float32").slug for model in ("tiny", "random:tiny")]
    assert names == {f"{figure.NAME}-{slug}.{kind}" for figure in UNTIMED for slug in slugs for kind in ("png", "svg")}
    for path in run.figures.glob("*.png"):
        image = matplotlib.image.imread(path)
        assert image.shape[0] > 300
        assert image[..., :3].std() > 0.02, path


def test_figures_of_equal_tables_are_equal_bytes_and_stale_ones_go(two_models):
    run = two_models
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.figures.iterdir()}
    (run.figures / "size-of-yesterday.png").write_bytes(b"")
    stamp = next(iter(run.figures.glob("size-*.svg"))).stat().st_mtime_ns
    draw_figures(run)
    assert next(iter(run.figures.glob("size-*.svg"))).stat().st_mtime_ns == stamp
    for path in run.figures.iterdir():
        path.unlink()
    draw_figures(run)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.figures.iterdir()} == first


def test_untrained_is_written_on_every_figure_of_an_untrained_model(two_models):
    for data in load(two_models):
        assert all(module.draw(data) is None for module in FIGURES if module not in UNTIMED)
        for module in UNTIMED:
            figure = module.draw(data)
            texts = [text.get_text() for text in figure.texts]
            assert any("untrained" in text for text in texts) == (data.subject.model != "tiny"), module.NAME


def test_a_variant_has_one_colour_everywhere():
    alone, together = looks(["csr", "masked"]), looks(["csr", "masked", "zebra", "dense", "ant"])
    assert alone["csr"] == together["csr"]
    assert len(set(together.values())) == 5
    assert looks(["zebra", "ant"])["ant"] == looks(["ant", "zebra"])["ant"]


def test_size_figure_stacks_to_the_total_and_shows_three_references(two_models):
    data = next(data for data in load(two_models) if data.subject.model == "tiny")
    module = next(module for module in FIGURES if module.NAME == "size")
    axes = module.draw(data).axes[0]
    reach = {}
    for bar in axes.patches:
        if bar.get_width():
            row = round(bar.get_y() + bar.get_height() / 2)
            reach[row] = max(reach.get(row, 0.0), bar.get_x() + bar.get_width())
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    table = data.table.assign(name=[v if m == "none" else f"{v} {percent(s)}" for v, m, s in zip(
        data.table["variant"], data.table["method"], data.table["sparsity_target"], strict=True)])  # fmt: skip
    sizes = table.set_index("name")["bytes_total"]
    assert {name: pytest.approx(sizes[name] / 2**20) for name in names} == {names[k]: v for k, v in reach.items()}
    references = sorted(line.get_xdata()[0] * 2**20 for line in axes.lines)
    row = data.table.iloc[0]
    assert references == pytest.approx(
        sorted([row["bytes_dense_float32"], row["bytes_dense_published"], row["bytes_source_file"]])
    )


def test_size_curve_holds_the_bytes_of_the_table_beside_each_reference_once(two_models):
    data = next(data for data in load(two_models) if data.subject.model == "tiny")
    axes = next(module for module in FIGURES if module.NAME == "size-curve").draw(data).axes[0]
    curves = [line for line in axes.lines if line.get_marker() not in ("", "None")]
    drawn = {line.get_label().split(",")[0]: [y * 2**20 for y in line.get_ydata()] for line in curves}
    rows = data.pruned.sort_values("sparsity_target")
    assert drawn == {
        variant: pytest.approx(list(rows.loc[rows["variant"] == variant, "bytes_total"])) for variant in drawn
    }
    assert set(drawn) == set(rows["variant"])
    row = data.table.iloc[0]
    sizes = {row["bytes_dense_float32"], row["bytes_dense_published"], row["bytes_source_file"]}
    references = sorted(line.get_ydata()[0] * 2**20 for line in axes.lines if line not in curves)
    assert references == pytest.approx(sorted(sizes))


def test_page_is_offline_complete_and_says_what_the_tables_say(two_models):
    run = two_models
    page = write_report(run)
    text = page.read_text(encoding="utf-8")
    seen = Page(text)
    for attributes in [*seen.all("img"), *seen.all("script"), *seen.all("link")]:
        source = attributes.get("src") or attributes.get("href") or "data:"
        assert source.startswith("data:"), source[:80]
    assert len(seen.all("img")) == 2 * len(UNTIMED)
    assert all(image["alt"] for image in seen.all("img"))
    anchors = {attributes["href"] for attributes in seen.all("a")}
    ids = {attributes.get("id") for _, attributes in seen.tags}
    assert all(anchor[1:] in ids for anchor in anchors if anchor.startswith("#"))
    assert {f"def-{definition.key}" for definition in DEFINITIONS} <= ids
    order = [text.index(f'id="{name}"') for name in ("coverage", "headline", "figures", "definitions", "provenance")]
    assert order == sorted(order)
    assert "10 of 10 cells are done" in seen.text
    table = read_table(run, "global").to_pandas()
    csr = table[(table["model"] == "tiny") & (table["variant"] == "csr") & (table["sparsity_target"] == 0.3)]
    unique, study = (csr[csr["convention"] == name].iloc[0] for name in ("unique", "study"))
    assert unique["bytes_total"] > unique["bytes_dense_float32"] > study["bytes_total"]
    assert "csr at 30 % is larger than the dense model, not smaller" in seen.text
    assert f"perplexity {number(unique['perplexity_dense'])} to" in seen.text
    assert share(unique["top1_agreement"]) in seen.text
    assert "untrained" in seen.text
    assert "random:tiny has random" in " ".join(seen.text.split())
    summary = (run.report / "summary.md").read_text(encoding="utf-8")
    assert "10 of 10 cells done" in summary
    assert summary.count("\n| tiny |") == 5


def test_csr_smaller_than_dense_is_not_called_larger(make_run, synthetic, no_figures):
    run = make_run({"tiny": synthetic.SMOLLM.__class__(1, 64, 256, 16, 64)}, sparsities=("0.9",), windows=3)
    aggregate_run(run, figures=False)
    text = write_report(run).read_text(encoding="utf-8")
    assert "not smaller" not in text
    assert "% smaller than dense float32" in Page(text).text


def test_report_is_made_from_nothing_but_shards(make_run, monkeypatch):
    monkeypatch.setattr("aggregate.figures.FIGURES", UNTIMED[:1])
    run = make_run(sparsities=("0.3",), windows=3)
    first = write_report(run).read_bytes()
    for folder in (run.tables, run.figures, run.report):
        for path in folder.iterdir():
            path.unlink()
    assert write_report(run).read_bytes() == first


def test_hostile_model_name_stays_text(make_run, synthetic, monkeypatch):
    monkeypatch.setattr("aggregate.report._plotly", lambda: "")
    run = make_run({HOSTILE: synthetic.TINY}, sparsities=("0.3",), windows=3)
    aggregate_run(run, figures=False)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not any("alert" in str(attributes) for attributes in page.all("script"))
    # Data, Plotly, two of the page, and one that folds each static part.
    assert len(page.all("script")) == 4 + sum(box.get("class") == "static" for box in page.all("details"))
    assert "<script>alert(1)</script>" in page.text
    assert all(path.parent == run.figures for path in run.figures.rglob("*"))
    assert "<script" not in (run.report / "summary.md").read_text(encoding="utf-8")


def test_page_of_a_partial_run_lists_what_is_not_there(make_run, no_figures):
    run = make_run(sparsities=("0.3", "0.5"), windows=3)
    cell = run.cell(read_plan_ids(run)[-1])
    cell.row.unlink()
    cell.failure.write_text('{"cause": "TIME", "message": "DUE TO TIME LIMIT in /home/ada/runs"}')
    aggregate_run(run, figures=False)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "4 of 5 cells are done" in page.text
    assert "TIME: DUE TO TIME LIMIT in ~/runs" in page.text
    assert "ada" not in page.text


def test_run_without_any_done_cell_has_a_page(tmp_path, synthetic):
    run = RunFolder(tmp_path / "run")
    synthetic.write_plan(run, synthetic.cells_of("tiny", sparsities=("0.3",)))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "0 of 3 cells are done" in page.text


def test_page_names_no_person_and_no_place(make_run, no_figures):
    run = make_run(sparsities=("0.3",), windows=3)
    run.provenance.write_text(
        '{"user": "ada", "host": "n01", "account": "p123", "commit": "abc", "torch": {"version": "2.9", "path": "/x"},'
        '"snapshot": "/home/ada/.cache/m"}'
    )
    run.study.write_text('[study]\nname = "s"\n[[models]]\nid = "/home/ada/opt"\n')
    text = write_report(run).read_text(encoding="utf-8")
    for private in ("ada", "n01", "p123", str(Path.home()) + "/", str(run.root), f"/home/{getpass.getuser()}"):
        assert private not in text, private
    assert "~/.cache/m" in text
    assert "abc" in text


def test_figures_name_no_person_and_no_place():
    subject = Subject("/home/ada/models/opt", "float32", "calibration_corpus lines:/scratch/ada/texts.txt")
    assert subject.title == "~/models/opt · float32 · calibration_corpus lines:~/texts.txt"
    assert subject.slug.startswith("models-opt-")
    assert subject.slug != Subject("/home/bob/models/opt", "float32").slug, "two models, two files"
    assert Subject("opt-125m", "float32").slug == "opt-125m-float32"


def read_plan_ids(run: RunFolder) -> list[str]:
    from aggregate.scan import read_plan

    return read_plan(run)["cell_id"].to_pylist()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: number(0), "0"),
        (lambda: number(25_480_396.0), "25,480,396"),
        (lambda: number(-0.0123456), "-0.01235"),
        (lambda: number(math.inf), "inf"),
        (lambda: percent(0.125), "12.5 %"),
        (lambda: share(1.0), "100 %"),
        (lambda: share(0.99999), "99.9990 %"),
        (lambda: share(0.9997), "99.9700 %"),
        (lambda: share(0.745), "74.5 %"),
        (lambda: signed(-0.5), "\N{MINUS SIGN}50.0 %"),
        (lambda: signed(0), "no change"),
        (lambda: against(100, 100), "the size of"),
        (lambda: against(131.4, 100), "31.4 % larger than"),
        (lambda: against(250, 100), "2.50 times as large as"),
        (lambda: against(50, 100), "50.0 % smaller than"),
        (lambda: label("a$b\n"), r"a\$b"),
        (lambda: label("x" * 99), "x" * 59 + "…"),
        (lambda: markdown("a_b|<b>"), r"a\_b\|&lt;b>"),
        (lambda: scrub("/Users/ada/x and C:\\Users\\ada\\x"), "~/x and ~\\x"),
    ],
)
def test_how_figures_are_written(call, expected):
    assert call() == expected


def test_public_provenance_is_flat():
    assert public({"a": {"b": 1, "username": "x"}, "list": [1, 2], "empty": ""}) == {"a.b": "1", "list": "1, 2"}


def test_page_compares_with_another_run(make_run, no_figures, synthetic):
    run, other = make_run(sparsities=("0.3",), windows=3), make_run(sparsities=("0.3",), windows=3, name="other")
    cell = read_plan_ids(other)[-1]
    other.cell(cell).row.unlink()
    for each in (run, other):
        aggregate_run(each, figures=False)
    page = Page(write_report(run, other).read_text(encoding="utf-8"))
    assert "Against another run" in page.text
    assert "it is missing in the first run" in page.text
    assert "Against another run" not in write_report(run).read_text(encoding="utf-8")
