"""Pruning with statistics recomputed inside a layer, restated plainly on a whole model with hooks.

The groups are written out for every family, in the order its forward pass needs them; the walk finds them by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

#: Linears of a decoder layer by their last name: those of one group read the same input.
GROUPS = {
    "opt": (("q_proj", "k_proj", "v_proj"), ("out_proj",), ("fc1",), ("fc2",)),
    "gpt_neox": (("query_key_value",), ("dense",), ("dense_h_to_4h",), ("dense_4h_to_h",)),
    "llama": (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)),
}


def prune_in_turn(
    model: torch.nn.Module,
    names: Sequence[str],
    family: str,
    texts: Sequence[torch.Tensor],
    prune: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Prune one decoder layer of a model in place.

    Parameters
    ----------
    names
        Weights of the layer that are pruned.
    texts
        Windows of token ids.
    prune
        From a weight's name, the dense weight and all its inputs (tokens x in_features) to the pruned weight.
    """
    weights: Mapping[str, torch.nn.Parameter] = dict(model.named_parameters())
    for group in GROUPS[family]:
        members = [name for name in names if name.split(".")[-2] in group]
        inputs: dict[str, list[torch.Tensor]] = {name: [] for name in members}
        handles = [
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                lambda module, args, seen=inputs[name]: seen.append(args[0].reshape(-1, args[0].shape[-1]))
            )
            for name in members
        ]
        for ids in texts:
            model(ids[None])
        for handle in handles:
            handle.remove()
        # All of the group first, then into the model: one must not see the other pruned.
        pruned = {name: prune(name, weights[name].data, torch.cat(inputs[name])) for name in members}
        for name, weight in pruned.items():
            weights[name].data = weight
