"""What the summary tables and their columns mean: the text of ``docs/tables.md``.

``python -m aggregate.columns > docs/tables.md`` writes it again; a test compares it with the tables of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from aggregate.tables import AXES, GLOBAL_COLUMNS, KEYS, STRUCTURE_COLUMNS, TABLES_VERSION
from sparsehpc.core import schema

TABLE_MEANINGS = {
    "global": "one row per cell and convention: every figure of the whole model",
    "groups": "one row per cell, convention and group of parameters",
    "layers": "one row per cell, convention and decoder layer",
    "tensors": "one row per cell, convention and stored tensor",
    "windows": "one row per cell and evaluation window, with the sums behind each ratio",
    "bins": "one row per cell and bin: agreement, KL and flips by position and by the dense model's margin",
    "coverage": "one row per planned cell: whether it is done, failed, damaged or missing, and why",
    "costs": "one row per done cell that measures behaviour: times, memory, machine, digests of what it read",
    "latency": "one row per timed cell, where a study has a [latency] table: how long decoding takes, on which machine",
    "tipping": "how far each method can go: tolerance crossings and breaks",
    "seeds": "spread over calibration seeds, where a study has several",
    "pareto": "which cells no other cell beats in a cost and a loss",
}

#: Columns that are not described by a schema.
COLUMN_MEANINGS = {
    "convention": "`unique`: each stored tensor once, every byte that is stored; `study`: the old study's accounting",
    "params_total": "weights",
    "params_nonzero": "weights that are not exactly zero",
    "sparsity": "zeros / weights",
    "sparsity_prunable": "zeros / weights, of the pruned groups' linear weights",
    "param_fraction": "weights / all weights of the model",
    "bytes_total": "bytes of every stored array",
    "bytes_total_COMPONENT": "the same of one component: `weight`, `values`, `indices`, `offsets`, `mask`, ...",
    "bytes_ratio": "bytes / bytes of the dense model in the same dtype",
    "bytes_dense_float32": "bytes of the dense model in float32",
    "bytes_dense_published": "bytes of the dense model in the dtype it was published in",
    "bytes_source_file": "bytes of the published weight files",
    "bytes_dense_bf16, bytes_dense_int8, bytes_dense_q4": "bytes of the dense model with its prunable matrices in that "
    "lossy format",
    "break_even_sparsity": "sparsity from which the format is smaller than dense in the same dtype",
    "flops_dense": "operations per token of the dense model's matrix products, a multiply-add counted as two",
    "flops_theoretical": "two per non-zero weight",
    "flops_executed": "what the variant's kernel does",
    "attention_flops_per_context_token": "operations of the attention scores per token and token of context",
    "top1_agreement": "share of positions where the most likely token is the dense model's",
    "top1_differs_from_masked": "share of positions where the most likely token is not the masked variant's",
    "kl": "KL(dense || cell), nats per position",
    "nll": "negative log-likelihood, nats per predicted token",
    "perplexity": "exp of `nll`",
    "bits_per_byte": "negative log-likelihood in bits per UTF-8 byte",
    "log_perplexity_difference": "`nll` minus the dense model's on the same windows",
    "accuracy": "share of predicted tokens that are right",
    "mean_rank": "mean rank of the dense model's choice in the cell's distribution",
    "both_right": "predicted tokens that dense and cell both get right",
    "dense_only_right": "predicted tokens that only dense gets right",
    "variant_only_right": "predicted tokens that only the cell gets right",
    "both_wrong": "predicted tokens that neither gets right",
    "generation_first_divergence": "tokens of greedy generation before the first that differs from dense",
    "generation_share_equal": "share of greedily generated tokens equal to dense's",
    "generation_distinct_bigrams": "distinct bigrams / bigrams generated",
    "reconstruction_error": "squared error of a pruned linear's outputs, or a layer's, over the dense outputs' squares",
    "floor_top1_agreement": "share of its choices that dense keeps in another batch split and thread count",
    "floor_top1_differs_max": "share of positions where it does not, in the worst window",
    "floor_kl, floor_kl_max": "KL(dense || dense computed again), nats per position; of the worst window",
    "floor_nll, floor_nll_max": "absolute difference of a window's likelihood, nats per token; of the worst window",
    "floor_positions": "positions that were compared for the floor",
    "METRIC_dense": "the same figure of the dense model on the same windows",
    "METRIC_lo, METRIC_hi": "95 % interval (see [Intervals](statistics.md)); empty where there are too few windows",
    "METRIC_numerator, METRIC_denominator": "in `windows` and `bins`: the sums behind the figure",
    "interval_units": "windows behind the intervals",
    "interval_note": "why there is no interval",
    "group, layer, tensor, window, bin": "what the row is about",
    "bin_of, bin_from, bin_to": "what it is a bin of, and its edges, the upper one left out: `position` in the window "
    "in tokens from 0; `margin` of the dense model's best token before its second in nats",
    "decode_s_per_token, prompt_s": "median seconds to decode a token, and to read the prompt; `_p90_`: 90 % quantile",
    "decode_s_per_token_dense, ...": "the same of the dense model on our own kernels, in turns with the cell",
    "speedup": "`decode_s_per_token_dense` / `decode_s_per_token`; `_least`, `_most`: of any round",
    "speedup_floor": "how far `speedup` strays from 1, either way, in cells that read the bytes of dense in its kernel",
    "prompt_speedup": "the same for reading the prompt",
    "streamed_bytes": "bytes of all weights that one token reads, the head included",
    "pruned_bytes": "bytes of the matrices that the variant stores",
    "effective_gb_per_s": "`streamed_bytes` / `decode_s_per_token`, in 10^9 bytes a second",
    "byte_limit_s_per_token": "seconds of a plain read of as many bytes, in one piece, in the same process",
    "byte_limit_share": "`byte_limit_s_per_token` / `decode_s_per_token`",
    "byte_limit_speedup": "bytes of the pruned matrices, dense / stored",
    "ceiling_speedup": "`streamed_bytes_dense` / `streamed_bytes`: what a dense head leaves of it",
    "flop_promise_speedup": "weights of all linears / those that are not zero",
    "resident_bytes": "growth of the process by the model, measured once it has decoded",
    "logits_error": "largest difference of a logit from the masked model's, over the largest logit",
    "on_front_perplexity, on_front_top1_agreement": "no other cell of the machine beats it in both time and loss",
    "isa, decoder": "instruction set of the kernels; `compiled` (a token is one call), `lean` loop, `transformers`",
    "prompt_tokens, new_tokens, repeats": "length of a sequence, and how many were decoded",
    "behaviour_cell_id": "the cell with the same weights that measures behaviour",
    "kind": "`behaviour`, or `latency` for a cell that is timed",
    "state": "`done`, `failed`, `damaged` or `missing`",
    "cause": "class of a failure: OOM, TIME, NODE, CODE, ...",
    "reason": "the failure or damage in words",
    "order": "place in the plan",
    "metric, tolerance": "in `tipping` and `seeds`: the figure that the row is about, and what it may lose: a rise of "
    "perplexity, or the least agreement",
    "basis": "what is compared with the tolerance: the bad end of the interval, or the figure where there is none",
    "answer": "`reached`, `not reached`, `below the first grid step`, or why there is none",
    "sparsity_within, sparsity_beyond": "largest sparsity that keeps the tolerance, smallest that does not",
    "sparsity_estimate": "where the line between them crosses the tolerance",
    "points, left_out": "sparsities of the curve; of those, cells worse than guessing, which the break leaves out",
    "break_answer": "`one piece`, `two pieces`, or why there is no break",
    "break_sparsity, break_lo, break_hi": "where log-perplexity turns, with the 95 % interval over draws of windows",
    "break_share_two_pieces": "share of those draws that prefer two pieces",
    "seeds": "calibration seeds",
    "mean, smallest, largest": "of the figure over the seeds; the mean of perplexity is the geometric one",
    "lo, hi": "95 % interval over seeds and windows, where there are at least 5 seeds",
    "note": "why there is no interval over seeds",
    "cost_metric, cost": "in `pareto`: what is paid, `bytes_total` or `decode_s_per_token`, and how much",
    "loss_metric, value": "in `pareto`: the figure of behaviour, and its value",
    "reference": "whether the cell is not pruned: it is always shown",
    "on_front": "whether no other cell of the model and text has less of both",
    "load_s": "seconds to open the weights, shared by the cells of a walk",
    "dense_s": "seconds of the dense model's evaluation, shared by the cells of a walk",
    "prune_s": "seconds of statistics and selection, shared by the variants of one way of pruning",
    "encode_s, evaluate_s": "seconds to store the weights in the variant's format, and to evaluate the cell",
    "wall_s": "seconds from the start of the walk until the cell was written",
    "peak_rss_bytes": "peak resident memory of the process until then",
    "threads": "threads of torch",
    "cpu_model, device, device_name": "what it ran on",
    "evaluation_digest, calibration_digest": "digests of the tokens that were read",
}

_ABOUT = ("trained", "lossless", "kernel", "vocabulary_tokens", "mark", "published_dtype", "source_bytes")


def tables_page() -> str:
    """The page as Markdown."""
    fields = {field.name: field for field in (*schema.KEYS, *schema.CELL)}
    keys = [*KEYS, *AXES, *(name for name in schema.KEYS.names if name not in (*KEYS, *AXES))]
    described = [(f"`{name}`", fields[name].metadata[b"meaning"].decode()) for name in (*keys, *_ABOUT)]
    figures = [(", ".join(f"`{part}`" for part in name.split(", ")), text) for name, text in COLUMN_MEANINGS.items()]
    return f"""# Summary tables

`sparsehpc aggregate RUN` writes every table as Parquet and as CSV into `RUN/tables`. Rows stand in the order of the
plan. A metric becomes a column by itself, named as the metric; unit and reduction stand in the metadata of the Parquet
field. Figures that were not measured are empty. A figure without a convention stands under both.

Version {TABLES_VERSION} of the columns (metadata `sparsehpc.tables_version`): it rises when a column changes its name
or meaning.

| table | rows |
| --- | --- |
{_lines((f"`{name}`", text) for name, text in TABLE_MEANINGS.items())}

`global` has at least {_codes(GLOBAL_COLUMNS)}; `groups`, `layers` and `tensors` at least {_codes(STRUCTURE_COLUMNS)}.

## Keys: what a cell is

Dense rows have method `none`, pattern `none` and sparsity 0.

| column | meaning |
| --- | --- |
{_lines(described)}

## Figures

| column | meaning |
| --- | --- |
{_lines(figures)}

Every further metric is described under [Metrics](_generated/metrics.md).

How to read them with pandas and DuckDB: [Recipes](recipes.md).
"""


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {name} | {text} |" for name, text in ((n, t.replace("|", "\\|")) for n, t in rows))


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(tables_page())
