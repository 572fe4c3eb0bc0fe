"""The two tables every cell writes, and the plan: explicit Arrow schemas with version and meaning.

``measurements`` is long: one row per figure, and each row says how it combines with others, so that a new
metric adds rows, never columns, and aggregation needs no edit.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

import pyarrow as pa

#: Raised when a column changes its meaning; shards of another version are refused.
SCHEMA_VERSION: Final = 1

Scope = Literal["tensor", "layer", "group", "model", "window", "bin"]
Convention = Literal["unique", "study", ""]
Reduction = Literal["sum", "ratio", "exp_ratio", "max", "mean"]
SCOPES: Final[tuple[str, ...]] = get_args(Scope)
CONVENTIONS: Final[tuple[str, ...]] = get_args(Convention)
REDUCTIONS: Final[tuple[str, ...]] = get_args(Reduction)

#: Groups of parameters, in the order tables and figures show them.
GROUPS: Final = ("attention", "mlp", "embedding", "norm", "lm_head", "other")


class Measurement(NamedTuple):
    """One figure of one cell.

    Parameters
    ----------
    scope
        What it is about: one stored tensor, a decoder layer, a group of parameters, the whole model,
        one evaluation window, or one bin of a distribution.
    subject
        Which one: tensor name, layer number, group name, ``model``, window number, bin label.
    metric
        Name; becomes a column of the summary tables.
    numerator, denominator
        The figure is numerator / denominator; 1.0 where it is a plain sum.
    reduction
        How rows combine: ``sum`` of numerators, ``ratio`` of the sums, ``exp_ratio`` exp of the ratio of the
        sums, ``max`` of the ratios.
    unit
        ``bytes``, ``weights``, ``flops``, ``tokens``, ``nats``, ``s``, ``1`` for a pure number.
    component
        Part of the subject (``values``, ``indices``, ``bias``, ...); empty where there is none.
    convention
        ``unique`` or ``study`` for what is counted in two ways; empty otherwise.
    layer
        Decoder layer, where there is one.
    group
        Group of parameters, where there is one.
    """

    scope: str
    subject: str
    metric: str
    numerator: float
    denominator: float = 1.0
    reduction: str = "sum"
    unit: str = "1"
    component: str = ""
    convention: str = ""
    layer: int | None = None
    group: str = ""


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


_VERSION = {"sparsehpc.schema_version": str(SCHEMA_VERSION)}

MEASUREMENTS: Final = pa.schema(
    [
        _field("cell_id", pa.string(), "content hash of the cell"),
        _field("scope", pa.string(), "tensor | layer | group | model | window | bin"),
        _field("subject", pa.string(), "tensor name, layer number, group name, 'model', window number"),
        _field("layer", pa.int32(), "decoder layer, if the subject lies in one", nullable=True),
        _field("group", pa.string(), "group of parameters, empty if none"),
        _field("component", pa.string(), "part of the subject: values, indices, offsets, mask, bias, ..."),
        _field("convention", pa.string(), "unique | study | empty"),
        _field("metric", pa.string(), "name of the figure; a column of the summary tables"),
        _field("numerator", pa.float64(), "the figure is numerator / denominator"),
        _field("denominator", pa.float64(), "1 where the figure is a plain sum"),
        _field("reduction", pa.string(), "sum | ratio | exp_ratio | max | mean"),
        _field("unit", pa.string(), "bytes, weights, flops, tokens, nats, s, 1"),
    ],
    metadata=_VERSION,
)

#: Columns that say what a cell is: the same in the plan, in cell rows and in every summary table.
KEYS: Final = pa.schema(
    [
        _field("cell_id", pa.string(), "content hash of everything that decides the result"),
        _field("model", pa.string(), "model as the study names it"),
        _field("revision", pa.string(), "commit of a hub model", nullable=True),
        _field("dtype", pa.string(), "type of weights and activations"),
        _field("device", pa.string(), "cpu | cuda"),
        _field("resource", pa.string(), "resource class the cell ran in"),
        _field("method", pa.string(), "pruning method; 'none' for the dense reference"),
        _field("options", pa.string(), "options of the method that differ from its defaults, as JSON"),
        _field("pattern", pa.string(), "pattern of zeros; 'none' for the dense reference"),
        _field("sparsity_target", pa.float64(), "requested fraction of prunable weights"),
        _field("allocation", pa.string(), "how the budget is spread over layers"),
        _field("targets", pa.string(), "groups that are pruned, joined by '+'"),
        _field("refit", pa.bool_(), "kept weights were re-optimised"),
        _field("true_sequential", pa.bool_(), "statistics were recomputed inside each layer; null where not", True),
        _field("variant", pa.string(), "how the weights are stored and run"),
        _field("calibration_corpus", pa.string(), "text the method learned from", nullable=True),
        _field("calibration_windows", pa.int64(), "number of calibration windows", nullable=True),
        _field("calibration_window_tokens", pa.int64(), "tokens of a calibration window", nullable=True),
        _field("calibration_seed", pa.int64(), "seed that drew the calibration windows", nullable=True),
        _field("evaluation_corpus", pa.string(), "text that behaviour is measured on"),
        _field("evaluation_windows", pa.int64(), "number of evaluation windows"),
        _field("evaluation_window_tokens", pa.int64(), "tokens of an evaluation window at most"),
        _field("seed", pa.int64(), "seed of the study"),
    ]
)

CELL: Final = pa.schema(
    [
        *KEYS,
        _field("trained", pa.bool_(), "false for randomly initialised weights"),
        _field("published_dtype", pa.string(), "dtype the checkpoint was published in"),
        _field("source_bytes", pa.int64(), "bytes of the published weight files"),
        _field("snapshot_digest", pa.string(), "sha256 over the weight files that were read"),
        _field("evaluation_digest", pa.string(), "sha256 of the evaluation tokens"),
        _field("calibration_digest", pa.string(), "sha256 of the calibration tokens", nullable=True),
        _field("lossless", pa.bool_(), "the format stores the pruned weights bit-exactly"),
        _field("kernel", pa.string(), "kernel that multiplied the stored weights"),
        _field("vocabulary_tokens", pa.int64(), "size of the vocabulary: what guessing chooses from", nullable=True),
        _field("mark", pa.string(), "verdicts a reader must see, e.g. 'worse than guessing'"),
        _field("notes", pa.string(), "what the method recorded (damping steps, ...), as JSON"),
        _field("load_s", pa.float64(), "reading weights"),
        _field("dense_s", pa.float64(), "dense stream, shared by the cells of the job"),
        _field("prune_s", pa.float64(), "statistics, selection and update; shared by the variants"),
        _field("encode_s", pa.float64(), "storing the weights in the variant's format"),
        _field("evaluate_s", pa.float64(), "evaluation stream, head and metrics of this cell"),
        _field("wall_s", pa.float64(), "whole job group this cell ran in"),
        _field("peak_rss_bytes", pa.int64(), "largest resident memory of the process (VmHWM)"),
        _field("threads", pa.int32(), "torch threads"),
        _field("cpu_model", pa.string(), "processor"),
        _field("device_name", pa.string(), "accelerator, or the processor"),
        _field("started_at", pa.string(), "UTC, ISO 8601"),
        _field("job_id", pa.string(), "scheduler's id, or 'local'"),
        _field("attempt", pa.int32(), "restarts the scheduler counted"),
        _field("provenance", pa.string(), "versions, commit, features, as JSON"),
        _field("measurements_rows", pa.int64(), "rows of measurements.parquet"),
        _field("measurements_sha256", pa.string(), "digest of measurements.parquet"),
        _field("row_sha256", pa.string(), "digest of this row without this column"),
    ],
    metadata=_VERSION,
)

PLAN: Final = pa.schema(
    [
        _field("order", pa.int64(), "position in the plan"),
        *KEYS,
        _field("kind", pa.string(), "behaviour | latency; empty in older plans: behaviour", nullable=True),
        _field("spec", pa.string(), "full specification of the cell as JSON"),
    ],
    metadata=_VERSION,
)


def conform(table: pa.Table, expected: pa.Schema) -> pa.Table:
    """Bring a table that was read to the columns of ``expected``, in order.

    Columns that are newer than the table are filled with null, columns that are newer than this code are left out:
    a release that adds a column still reads the runs of the one before it, and the other way round. A column that
    changes its meaning raises `SCHEMA_VERSION` instead.

    Raises
    ------
    ValueError
        A column has another type, a column that cannot be empty is missing, or the version is another one.
    """
    version = (table.schema.metadata or {}).get(b"sparsehpc.schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"schema version {version}, this code reads {SCHEMA_VERSION}")
    if table.schema.equals(expected, check_metadata=False):
        return table
    columns, problems = [], []
    for field in expected:
        place = table.schema.get_field_index(field.name)
        if place >= 0 and table.schema.field(place).type == field.type:
            columns.append(table.column(place))
        elif place >= 0:
            problems.append(f"column {field.name} is {table.schema.field(place).type}, not {field.type}")
        elif field.nullable:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            problems.append(f"column {field.name} is missing")
    if problems:
        raise ValueError("another schema: " + "; ".join(problems))
    return pa.table(columns, schema=expected.with_metadata(table.schema.metadata))
