"""``sparsehpc describe``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json, table

_MIB = 2**20
_CONVENTIONS = {
    "unique": "unique: each stored tensor once, look-ups cost nothing, every array of the storage counted",
    "study": "study: as the old study counted (tied head again, look-ups billed, CSR weights not counted as bytes)",
}


@app.command()
def describe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model as a study names it.", show_default=False)],
    sparsity: Annotated[str, typer.Option(help="Prune so much of the prunable weights, e.g. 0.3; else dense.")] = "",
    method: Annotated[str, typer.Option(help="Pruning method without calibration data.")] = "magnitude",
    pattern: Annotated[str, typer.Option(help="Pattern of zeros.")] = "unstructured",
    variant: Annotated[str, typer.Option(help="Storage format.")] = "csr",
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    revision: Annotated[str, typer.Option(help="Commit of a hub model.")] = "",
    json: Json = False,
) -> None:
    """Print a model's structure: parameters, zeros, bytes and FLOPs by group."""
    from decimal import Decimal, InvalidOperation

    from jobs.describe import describe as describe_model
    from sparsehpc.core.errors import UserError, unknown
    from sparsehpc.core.spec import DTYPES
    from sparsehpc.formats.base import FORMATS
    from sparsehpc.pruning.base import METHODS
    from sparsehpc.pruning.patterns import parse_pattern

    if dtype not in DTYPES:
        raise UserError(unknown("dtype", dtype, DTYPES))
    if sparsity:
        try:
            legal = 0 <= Decimal(sparsity) <= 1
        except InvalidOperation:
            legal = False
        if not legal:
            raise UserError(f"sparsity {sparsity!r} is not a number from 0 to 1", "for example --sparsity 0.3")
    METHODS.get(method)
    FORMATS.get(variant)
    given = {"method": method != "magnitude", "pattern": pattern != "unstructured", "variant": variant != "csr"}
    if not sparsity and any(given.values()) and parse_pattern(pattern).fixed_sparsity is None:
        named = " and ".join(f"--{name}" for name, present in given.items() if present)
        raise UserError(f"{named} says how weights are pruned, but not how many", "add --sparsity, e.g. 0.3")
    found = describe_model(
        model,
        revision=revision or None,
        dtype=dtype,
        sparsity=sparsity or None,
        method=method,
        pattern=pattern,
        variant=variant,
    )
    if json:
        echo_json(found)
        return
    what = (
        "dense" if found["dense"] else f"{found['method']} {found['pattern']} {found['sparsity']}, {found['variant']}"
    )
    echo(f"{model}, {dtype}, {what}{', untrained: random weights' if model.startswith('random:') else ''}")
    for convention, meaning in _CONVENTIONS.items():
        echo(f"\n{meaning}")
        entries = found["conventions"][convention]
        rows = [_row(name, figures) for name, figures in entries["groups"].items()]
        rows.append(_row("total", entries["total"]))
        table(
            [
                "group",
                "parameters",
                "share %",
                "non-zero",
                "sparsity %",
                "MiB",
                "MFLOPs dense",
                "theoretical",
                "executed",
            ],
            rows,
        )
    _references(found)


def _row(name: str, figures: dict[str, Any]) -> list[str]:
    share = figures.get("param_fraction")
    sparsity = figures.get("sparsity")
    return [
        name,
        f"{figures['params_total']:,.0f}",
        "" if share is None else f"{100 * share:.2f}",
        f"{figures['params_nonzero']:,.0f}",
        "" if sparsity is None else f"{100 * sparsity:.3f}",
        f"{figures['bytes_total'] / _MIB:.2f}",
        f"{figures['flops_dense'] / 1e6:.3f}",
        f"{figures['flops_theoretical'] / 1e6:.3f}",
        f"{figures['flops_executed'] / 1e6:.3f}",
    ]


def _references(found: dict[str, Any]) -> None:
    references = found["references"]
    total = found["conventions"]["unique"]["total"]
    if "sparsity_prunable" in total and not found["dense"]:
        echo(f"\nsparsity over the prunable weights: {100 * total['sparsity_prunable']:.4f} %")
    parts = {k.removeprefix("bytes_total_"): v for k, v in total.items() if k.startswith("bytes_total_")}
    echo("\nbytes by component: " + ", ".join(f"{name} {size / _MIB:.2f} MiB" for name, size in sorted(parts.items())))
    for key, label in (
        ("bytes_dense_float32", "dense float32"),
        ("bytes_dense_published", "dense in the published dtype"),
        ("bytes_source_file", "source file"),
    ):
        if key in references:
            ratio = total["bytes_total"] / references[key]
            echo(f"  {ratio:.3f} of {label} ({references[key] / _MIB:.2f} MiB)")
    if "break_even_sparsity" in references:
        echo(
            f"smaller than dense from {100 * references['break_even_sparsity']:.1f} % sparsity on ({found['variant']})"
        )
    echo(
        "attention scores, per token and token of context: "
        f"{references['attention_flops_per_context_token']:,.0f} FLOPs, not included above"
    )
