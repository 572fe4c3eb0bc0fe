"""What nothing else beats: perplexity against the time of a token, on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregate.figures.data import ModelData, records
from aggregate.figures.perplexity import plain_ticks
from aggregate.figures.style import BLACK, label, new_figure, percent
from aggregate.latency import machines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "time-pareto"
TITLE = "Perplexity against time per token"
CAPTION = (
    "Each point is a cell: median milliseconds to decode a token, and perplexity. The line joins those that no other "
    "cell beats in both on the same machine. Hollow points are not pruned. Lower left is better."
)

#: Points with a name.
_MOST_NAMED = 12


def draw(data: ModelData) -> Figure | None:
    """Scatter with the front as a step line, on the machine that most cells were timed on."""
    known = data.latency[data.latency["perplexity"].notna()] if not data.latency.empty else data.latency
    if known.empty or (known["method"] == "none").all():
        return None
    machine, rows = max(machines(known), key=lambda found: len(found[1]))
    figure, axes = new_figure(f"Perplexity against time · {data.subject.title} · {label(machine)}", data.trained)
    milliseconds = 1e3 * rows["decode_s_per_token"]
    reference = rows["method"] == "none"
    for variant in data.variants:
        look = data.looks[variant]
        for hollow, fill in ((True, "none"), (False, look.colour)):
            here = (rows["variant"] == variant) & (reference == hollow)
            if here.any():
                axes.scatter(
                    milliseconds[here],
                    rows.loc[here, "perplexity"],
                    s=36,
                    marker=look.marker,
                    facecolors=fill,
                    edgecolors=look.colour,
                    linewidths=1.2,
                    label=label(variant) + (" (not pruned)" if hollow else ""),
                    zorder=4 if hollow else 3,
                )
    on = rows[rows["on_front_perplexity"]].sort_values("decode_s_per_token")
    front_ms = 1e3 * on["decode_s_per_token"]
    axes.step(front_ms, on["perplexity"], where="post", color=BLACK, linewidth=1, alpha=0.6, label="front", zorder=2)
    named = rows[(reference) | rows["on_front_perplexity"]].sort_values("decode_s_per_token")
    for number, row in enumerate(records(named)[:_MOST_NAMED]):
        axes.annotate(
            label(row["variant"]) if row["method"] == "none" else percent(row["sparsity_target"]),
            (1e3 * row["decode_s_per_token"], row["perplexity"]),
            # Neighbours would cover each other: one above, the next below.
            xytext=(0, -13 if number % 2 else 7),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per decoded token")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.25)
    axes.margins(x=0.12, y=0.12)
    axes.legend(fontsize=8, frameon=False)
    return figure
