"""What the words on the page mean; one entry per figure, so that each sentence can point at its definition."""

from __future__ import annotations

from typing import NamedTuple


class Definition(NamedTuple):
    """A term of the report."""

    key: str
    term: str
    text: str


DEFINITIONS = (
    Definition(
        "sparsity",
        "Sparsity",
        "Share of weights that are exactly zero. The requested sparsity is a fraction of the prunable weights "
        "(the linear weights of the pruned groups); sparsity of the whole model counts each stored tensor once.",
    ),
    Definition(
        "bytes",
        "Size",
        "Bytes of every array that the storage holds: values, indices, offsets, masks, biases, padding included, each "
        "stored tensor once. MiB is 2^20 bytes. It is compared with the dense model in float32, the dense model in the "
        "dtype it was published in, and the file it was published as.",
    ),
    Definition(
        "flops",
        "FLOPs per token",
        "Floating-point operations of the matrix products for one token, a multiply-add counted as two: dense, "
        "theoretical (two per non-zero weight), executed (what the variant's kernel does). Look-ups cost none; the "
        "attention scores grow with the context and are given per context token.",
    ),
    Definition(
        "speed",
        "Decode speed",
        "Median time of a token that is decoded alone (batch 1, keys and values kept), warm, against the same model "
        "with every linear on our own dense kernels: both sides take turns in one process, whose threads are pinned. "
        "Only this ratio is a gain from sparsity. The head-aware ceiling is the ratio of all bytes that a token reads, "
        "the head, which stays dense, included; the byte limit is a plain read of as many bytes in the same process. "
        "Where weights come to lie in memory moves it too: cells that read the bytes of dense in its kernel show how "
        "far, and a ratio that strays no further from 1 is no measurable difference. Faster means faster in every "
        "round and further than that; the least of the measured sparsities from which it holds is named.",
    ),
    Definition(
        "top1_agreement",
        "Top-1 agreement",
        "Share of positions at which the pruned model's most likely next token is the dense model's "
        "(ties take the lowest token id). Window sums are added, then divided.",
    ),
    Definition(
        "kl",
        "KL divergence",
        "Mean over positions of KL(dense || pruned) in nats, with softmax sums in float64.",
    ),
    Definition(
        "perplexity",
        "Perplexity",
        "exp of the mean negative log-likelihood in nats of the predicted evaluation tokens. It depends on tokenizer "
        "and text: compare it only within one model and evaluation. Above the size of the vocabulary it is marked "
        "'worse than guessing'.",
    ),
    Definition(
        "bits_per_byte",
        "Bits per byte",
        "Negative log-likelihood in bits over the UTF-8 bytes of the text: comparable across tokenizers.",
    ),
    Definition(
        "accuracy",
        "Accuracy and flips",
        "Share of predicted tokens that are the text's. Equal accuracy can hide tokens that went wrong and others that "
        "went right: both directions are counted beside the dense model.",
    ),
    Definition(
        "floor",
        "No measurable difference",
        "The dense model reads some windows a second time, two in a batch and with another number of threads. What "
        "differs then is rounding alone: agreement (at least one of the positions that were compared), KL and "
        "likelihood of the worst window. A difference that is not larger is no measurable difference.",
    ),
    Definition(
        "interval",
        "Intervals",
        "95 % intervals from a studentised bootstrap with 2,000 draws of whole evaluation windows (never tokens, which "
        "are alike within a window), paired with the dense model on the same windows: the bounds of perplexity are "
        "those of its difference to dense in nats, exponentiated last. Below 15 windows there are too few for an "
        "interval.",
    ),
    Definition(
        "tipping",
        "Tipping points",
        "How far a method can go: the largest sparsity at which the bound on the bad side of the interval stays within "
        "a tolerance of dense (perplexity +5 %, top-1 agreement 0.9), by a monotone fit through dense at 0 %. The "
        "break is where a continuous line of two pieces through log-perplexity changes its slope; cells worse than "
        "guessing are left out.",
    ),
    Definition(
        "pareto",
        "Front",
        "Cells that no other cell beats in both figures at once.",
    ),
    Definition(
        "convention",
        "Conventions: unique and study",
        "'unique' counts each stored tensor once and every byte that is stored; figures and headlines use it. 'study' "
        "is the accounting of the study that this one repeats: the tied head counted again, look-ups billed as matrix "
        "products, and a size that adds up parameters only, so that CSR weights, being buffers, weigh nothing.",
    ),
    Definition(
        "variant",
        "Variants",
        "How the pruned weights are stored and run: dense (not pruned), masked (zeros in dense arrays), csr "
        "(compressed sparse rows with 32-bit indices), and further formats of the study.",
    ),
    Definition(
        "pattern",
        "Patterns",
        "Where zeros may lie: unstructured (anywhere), or N:M, keep N of every M weights.",
    ),
    Definition(
        "untrained",
        "Untrained",
        "The model has seeded random weights. Its structure, size and operations are real; its behaviour says nothing "
        "about language.",
    ),
)
