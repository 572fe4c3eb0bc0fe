"""``sparsehpc prune MODEL``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json

_MIB = 1 << 20


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="Model: shipped name, hub id, folder, GGUF file.", show_default=False)],
    method: Annotated[str, typer.Option(help="Pruning method.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the packed model.", show_default=False)],
    sparsity: Annotated[str, typer.Option(help="Fraction of the prunable weights that go.")] = "",
    pattern: Annotated[str, typer.Option(help="Pattern of zeros; N:M keeps N of M.")] = "unstructured",
    storage: Annotated[str, typer.Option("--format", help="Storage format of the pruned weights.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of weights and activations.")] = "float32",
    revision: Annotated[str, typer.Option(help="Commit of a hub model.")] = "",
    allocation: Annotated[str, typer.Option(help="How the budget is spread over layers.")] = "default",
    target: Annotated[list[str] | None, typer.Option(help="Group to prune; may be repeated.")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Re-optimise the kept weights afterwards.")] = False,
    true_sequential: Annotated[
        bool, typer.Option("--true-sequential", help="Recompute statistics after each group of a layer's linears.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the method; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of methods that draw.")] = 0,
    calibration_corpus: Annotated[str, typer.Option(help="Text for methods that learn from one.")] = "python-docs",
    calibration_windows: Annotated[int, typer.Option(min=1, help="Windows of it.")] = 32,
    calibration_window_tokens: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 512,
    calibration_seed: Annotated[int, typer.Option(min=0, help="Seed that draws the windows; 0 takes the first.")] = 0,
    json: Json = False,
) -> None:
    """Prune one model and write it packed, one decoder layer in memory.

    sparsehpc.from_pretrained(OUT) loads it; sparsehpc densify OUT writes it for other tools.
    """
    from jobs.prune import Request
    from jobs.prune import prune as prune_model
    from sparsehpc.core.errors import UserError
    from sparsehpc.core.spec import DEFAULT_TARGETS, Calibration

    pairs = [entry.partition("=") for entry in option or []]
    if wrong := [key for key, equals, _ in pairs if not (key and equals)]:
        raise UserError(f"--option {wrong[0]!r} is no KEY=VALUE")
    request = Request(
        model=model,
        revision=revision or None,
        dtype=dtype,
        method=method,
        options={key: value for key, _, value in pairs},
        pattern=pattern,
        sparsity=sparsity,
        allocation=allocation,
        targets=tuple(target or DEFAULT_TARGETS),
        refit=refit,
        true_sequential=true_sequential,
        seed=seed,
        variant=storage,
        calibration=Calibration(
            corpus=calibration_corpus,
            windows=calibration_windows,
            window_tokens=calibration_window_tokens,
            seed=calibration_seed,
        ),
    )
    manifest = prune_model(request, out, lambda text: typer.echo(text, err=True))
    if json:
        echo_json(manifest | {"folder": str(out)})
    else:
        _summary(manifest, out)


def _summary(manifest: dict[str, Any], out: Path) -> None:
    weights, sizes = manifest["weights"], manifest["bytes"]
    zeros = weights["stored"] - weights["nonzero"]
    if weights["stored"]:
        echo(f"zeros: {zeros:,} of {weights['stored']:,} stored weights ({100 * zeros / weights['stored']:.4f} %)")
    formats: dict[str, int] = {}
    for entry in manifest["tensors"].values():
        formats[entry["format"]] = formats.get(entry["format"], 0) + 1
    echo("formats: " + ", ".join(f"{count} x {name}" for name, count in sorted(formats.items())))
    echo(
        f"size: {sizes['arrays'] / _MIB:.2f} MiB, {sizes['arrays'] / sizes['dense']:.3f} of dense {manifest['dtype']} "
        f"({sizes['dense'] / _MIB:.2f} MiB)"
    )
    echo(f"packed model: {out}")
