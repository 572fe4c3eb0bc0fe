"""A whole transformers model whose linears multiply from stored formats: for decoding, evaluation and other tools.

The module tree is built without weights and filled section by section (one decoder layer, or what lies outside), so
that a dense and a stored copy of the whole model never exist side by side. `generate` and everything else that
transformers does with a model works; nothing in it can be trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.machine import return_freed_memory
from sparsehpc.formats.base import FORMATS
from sparsehpc.formats.rows import stack_rows, take_rows
from sparsehpc.models.huge_pages import HugePages
from sparsehpc.models.stream import TORCH_DTYPES, StoredLinear
from sparsehpc.models.structure import bias_name, bias_parameter

if TYPE_CHECKING:
    from sparsehpc.formats.base import Stored
    from sparsehpc.models.structure import Structure

#: Linears of one module that read the same input; their rows are stacked in this order and multiplied at once.
SHARED_INPUT: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_DENSE = "dense"


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """Weights of one decoder layer, or of what lies outside all of them.

    Parameters
    ----------
    layer
        Number of the layer; None outside.
    plain
        Tensors as they are, by parameter name: embeddings, norms, biases, linears that no format stores.
    stored
        Linears in a format, by weight name.
    formats
        Name of each one's format.
    """

    layer: int | None
    plain: Mapping[str, torch.Tensor]
    stored: Mapping[str, Stored]
    formats: Mapping[str, str]


class SharedProduct:
    """Linears that read the same input, multiplied at once.

    Parameters
    ----------
    names
        Weight names, in the order of their rows.
    stored
        Their rows in one matrix.
    sizes
        Rows of each.
    bias
        One value per row, or None where none of them has a bias.
    """

    def __init__(
        self, names: Sequence[str], stored: Stored, sizes: Sequence[int], bias: torch.Tensor | None = None
    ) -> None:
        self.names, self.stored, self.sizes, self.bias = tuple(names), stored, tuple(sizes), bias
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Output of one linear; the first that sees ``x`` computes all of them."""
        if self._input is not x or self._outputs[index] is None:
            self._input = x
            self._outputs = list(self.stored.linear(x, self.bias).split_with_sizes(self.sizes, dim=-1))
        output = self._outputs[index]
        if output is None:
            raise SparseHPCError(f"{self.names[index]} has no output")
        self._outputs[index] = None
        if all(left is None for left in self._outputs):
            self._input, self._outputs = None, []
        return output


class SharedLinear(nn.Module):
    """One linear of a `SharedProduct`."""

    def __init__(self, product: SharedProduct, index: int) -> None:
        super().__init__()
        self.product, self.index = product, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., in_features) into (..., out_features)."""
        return self.product.part(x, self.index)


def assemble(
    folder: Path,
    structure: Structure,
    dtype: str,
    sections: Iterable[Section],
    *,
    device: str = "cpu",
    fuse: bool = True,
    recipe: Mapping[str, Any] | None = None,
) -> Any:
    """Build a model and fill it.

    Parameters
    ----------
    folder
        Holds config.json, and generation_config.json where there is one.
    structure
        The model's parameters.
    dtype
        Type of weights and activations.
    sections
        Every layer once, and what lies outside; each is dropped before the next is asked for.
    device
        Where the model runs.
    fuse
        Multiply linears that read the same input at once, where their formats allow it. Rows are summed alone in
        either case; dense storage may round otherwise in the last place, since its library picks another kernel.
    recipe
        How the weights were made; `sparsehpc.save_pretrained` writes it down.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, with `Assembled` as its attribute ``sparsehpc``.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.dtype = TORCH_DTYPES[dtype]
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    assembled = Assembled(model, Path(folder), structure, dtype, device, dict(recipe or {}))
    missing = {p.name for p in structure.parameters}
    for section in sections:
        missing -= assembled.fill(section, fuse)
        del section  # its arrays have been copied
        return_freed_memory()
    missing -= assembled.tie()
    if missing:
        raise SparseHPCError(f"parameters without a weight: {', '.join(sorted(missing)[:5])}")
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    model.sparsehpc = assembled
    return model


class Assembled:
    """What an assembled model is made of.

    Parameters
    ----------
    model
        The transformers model.
    folder, structure, dtype, device
        As for `assemble`.
    recipe
        How the weights were made.

    Attributes
    ----------
    formats
        Format of every stored linear, by weight name.
    """

    def __init__(
        self, model: Any, folder: Path, structure: Structure, dtype: str, device: str, recipe: dict[str, Any]
    ) -> None:
        self.model, self.folder, self.structure = model, folder, structure
        self.dtype, self.device, self.recipe = dtype, device, recipe
        self._pages = HugePages()
        self.formats: dict[str, str] = {}
        self._products: dict[str, tuple[SharedProduct, int]] = {}
        # Methods may give a bias to linears that had none.
        added = [bias_parameter(p) for p in structure.parameters if p.kind == "linear"]
        self._parameters = {p.name: p for p in (*added, *structure.parameters)}

    # -- filling ----------------------------------------------------------------------------------------------

    def fill(self, section: Section, fuse: bool) -> set[str]:
        """Put one section's weights into the module tree; returns the names of what is there now."""
        self.formats.update(section.formats)
        plain = {name: self._pages.tensor(tensor.to(self.device)) for name, tensor in section.plain.items()}
        for name, tensor in plain.items():
            if self._parameters[name].kind == "linear":
                self._linear(name).stored = FORMATS.get(_DENSE).encode(tensor)
        stored = dict(section.stored)
        done = set(plain) | set(stored)
        shared = self._shared(stored, plain) if fuse else []
        for product in shared:
            for index, name in enumerate(product.names):
                self._products[name] = (product, index)
                self._replace(self._parameters[name].module, SharedLinear(product, index))
                del stored[name]
                plain.pop(bias_name(name), None)
        for name, storage in stored.items():
            self._linear(name).stored = self._pages.stored(storage, self.formats[name])
        for name, tensor in plain.items():
            if self._parameters[name].kind != "linear":
                module, _, attribute = name.rpartition(".")
                owner = self.model.get_submodule(module)
                owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
        return done

    def tie(self) -> set[str]:
        """Let tied parameters that were not filled share the storage of their owner."""
        tied = set()
        for parameter in self.structure.parameters:
            if parameter.tied_to is None or parameter.name in self.formats:
                continue
            owner = self.model.get_submodule(parameter.tied_to.rpartition(".")[0]).weight
            self._linear(parameter.name).stored = FORMATS.get(_DENSE).encode(owner.data)
            tied.add(parameter.name)
        return tied

    def _shared(self, stored: Mapping[str, Stored], plain: Mapping[str, torch.Tensor]) -> list[SharedProduct]:
        """Groups of a section's linears that read the same input and can be stacked."""
        products = []
        by_owner: dict[str, dict[str, str]] = {}
        for name in stored:
            owner, _, projection = self._parameters[name].module.rpartition(".")
            by_owner.setdefault(owner, {})[projection] = name
        for here in by_owner.values():
            for group in SHARED_INPUT:
                if not all(projection in here for projection in group):
                    continue
                names = [here[projection] for projection in group]
                biases = [plain.get(bias_name(name)) for name in names]
                present = [bias for bias in biases if bias is not None]
                if len({self.formats[name] for name in names}) > 1 or len(present) not in (0, len(names)):
                    continue
                variant = self.formats[names[0]]
                stack = stack_rows([stored[name] for name in names], FORMATS.get(variant))
                if stack is not None:
                    bias = torch.cat(present) if present else None
                    stack = self._pages.stored(stack, variant)
                    products.append(SharedProduct(names, stack, [stored[name].shape[0] for name in names], bias))
        return products

    def _linear(self, name: str) -> StoredLinear:
        module = self._parameters[name].module
        present = self.model.get_submodule(module)
        if isinstance(present, StoredLinear):
            return present
        linear = StoredLinear(name)
        self._replace(module, linear)
        return linear

    def _replace(self, module: str, by: nn.Module) -> None:
        parent, _, attribute = module.rpartition(".")
        setattr(self.model.get_submodule(parent) if parent else self.model, attribute, by)

    # -- reading back -----------------------------------------------------------------------------------------

    def linear(self, name: str) -> tuple[Stored, torch.Tensor | None]:
        """Storage and bias of one linear, as a matrix of its own."""
        if name in self._products:
            product, index = self._products[name]
            first = sum(product.sizes[:index])
            last = first + product.sizes[index]
            stored = take_rows(product.stored, first, last, FORMATS.get(self.formats[name]))
            return stored, None if product.bias is None else product.bias[first:last].clone()
        module = self.model.get_submodule(self._parameters[name].module)
        if not isinstance(module, StoredLinear) or module.stored is None:
            raise SparseHPCError(f"{name} is no linear of this model, or was taken out of it")
        return module.stored, module.bias

    def product(self, name: str) -> SharedProduct | None:
        """The shared product that a linear is part of, or None."""
        return self._products[name][0] if name in self._products else None

    def sections(self) -> Iterator[Section]:
        """All weights again, section by section."""
        for layer in (*range(self.structure.layers), None):
            parameters = [p for p in self.structure.parameters if p.layer == layer]
            plain: dict[str, torch.Tensor] = {}
            stored: dict[str, Stored] = {}
            for parameter in parameters:
                if parameter.kind == "linear":
                    storage, bias = self.linear(parameter.name)
                    if parameter.name in self.formats:
                        stored[parameter.name] = storage
                    elif parameter.tied_to is None:
                        plain[parameter.name] = storage.decode()
                    if bias is not None:
                        plain[bias_name(parameter.name)] = bias
                elif parameter.kind != "bias":
                    plain[parameter.name] = self.model.get_parameter(parameter.name).data
            yield Section(layer, plain, stored, {name: self.formats[name] for name in stored})
