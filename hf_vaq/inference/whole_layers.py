"""Transformer layers that run as one kernel.

Module by module, a small model spends as much time between its matrix products as in them. One kernel for a whole
layer keeps what passes between the products in bytes and in the cache, and costs one call. It stands in for the
`forward` of a stock layer; whatever it cannot do (another type or device, a mask, attention probabilities that are
asked for, a hook on a module inside) the modules of the layer do, each with its own engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..integration.families import LAYER_NORMS, residual_factors
from ..integration.injection import require_quantized_attention
from ..nn import PackedActivationQuantizer, PackedLinear
from ..nn.attention import QUANTIZED_TENSORS, quantize_shared_input
from .attention import asks_for_probabilities, can_be_coded, scales_and_levels
from .backends import integer_backend
from .derived import Derived
from .gemm import FoldedProduct, ScaledWeight
from .layer_kernel import LayerKernel, WindowsKernel
from .layers import scale_of_outputs
from .native import kernels, ops
from .producers import CodedActivation
from .staircase import Staircase
from .windows import relative_position_windows, shifted_windows


class WholeLayerEngine(Derived):
    """The prepared kernel of a transformer layer, and the windows it was used with.

    Args:
        backend: as of the engines of the modules inside.
    """

    kernel: LayerKernel | None

    def __init__(self, backend: str | None = None):
        super().__init__()
        self.wanted_backend = backend

    def reset(self) -> None:
        """Forget what was prepared."""
        super().reset()
        self.kernel = None
        self.windows: dict[Any, WindowsKernel | None] = {}
        self.inside: tuple[tuple[nn.Module, int], ...] = ()  # modules, and how many hooks of our own they have

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kernel": None, "windows": {}, "inside": ()}

    def derive(self, layer: nn.Module) -> None:
        """Lay out the weights, if the kernel can take this layer where it is."""
        self.windows = {}
        device = layer.attention.input_quantizer.scale.device
        possible = device.type == "cpu" and integer_backend(device, self.wanted_backend)[0] == "onednn" and kernels()
        self.kernel = _lay_out(layer) if possible else None
        inside = [module for module in layer.modules() if module not in (layer, self)]
        self.inside = tuple((module, _own_hooks(module)) for module in inside)

    def takes(self, layer: nn.Module, hidden_states: Tensor, arguments: dict[str, Any]) -> bool:
        """Whether the kernel can do this call."""
        if layer.training or hidden_states.dtype is not torch.float32 or hidden_states.device.type != "cpu":
            return False
        if torch.compiler.is_exporting():
            return False
        self.prepare(layer)
        if self.kernel is None or asks_for_probabilities(layer.attention, arguments):
            return False
        require_quantized_attention(layer.attention, (), {})
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            return False
        return not any(
            len(module._forward_hooks) + len(module._forward_pre_hooks) > own for module, own in self.inside
        )

    def windows_for(self, key: Any, make: Callable[[], WindowsKernel | None]) -> WindowsKernel | None:
        """The windows of this key, made at their first use; None if there are none, or a compiler is at work."""
        if key not in self.windows:
            if torch.compiler.is_compiling():
                return None
            with torch.inference_mode(False), torch.no_grad():
                self.windows[key] = make()
        return self.windows[key]

    def forward(self, hidden_states: Tensor, windows: WindowsKernel) -> Tensor:
        """(images, tokens, width) to the same."""
        run = torch.ops.hf_vaq.layer if torch.compiler.is_compiling() else ops.layer
        return run(hidden_states, self.kernel.number, windows.number)


class _WholeLayer:
    """Mixin of a stock layer class: lets the kernel do the calls that it can do."""

    layer_engine: WholeLayerEngine

    def __reduce_ex__(self, protocol: int) -> tuple:
        # The class is made when it is needed, so that it has no name to be found by.
        return _rebuild, (type(self).__bases__[-1], type(self).__bases__[0]), self.__dict__

    def _whole(
        self, hidden_states: Tensor, key: Any, make: Callable[[], WindowsKernel | None], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """What the kernel gives, with the windows of this key; None if the modules have to do this call."""
        engine = self.layer_engine
        windows = engine.windows_for(key, make) if engine.takes(self, hidden_states, kwargs) else None
        return None if windows is None else engine(hidden_states, windows)


class PlainLayer(_WholeLayer):
    """Of ViT, DeiT and DINOv2: one window of all tokens."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """See the stock layer."""
        tokens = hidden_states.shape[1]
        if attention_mask is None:
            output = self._whole(hidden_states, tokens, lambda: WindowsKernel(tokens), kwargs)
            if output is not None:
                return output
        return super().forward(hidden_states, attention_mask, **kwargs)


class RelativePositionLayer(_WholeLayer):
    """Of BEiT: one window of all tokens, with a bias for the distance of two tokens."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See the stock layer."""
        if attention_mask is None:
            key = (hidden_states.shape[1], interpolate_pos_encoding, resolution)
            output = self._whole(hidden_states, key, lambda: relative_position_windows(self, *key), kwargs)
            if output is not None:
                return output
        return super().forward(hidden_states, attention_mask, interpolate_pos_encoding, resolution, **kwargs)


class WindowLayer(_WholeLayer):
    """Of Swin: shifted windows."""

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See the stock layer; without probabilities."""
        if not always_partition:
            self.set_shift_and_window_size(input_dimensions)
        key = (*input_dimensions, self.window_size, self.shift_size)
        output = self._whole(hidden_states, key, lambda: shifted_windows(self, *input_dimensions), kwargs)
        if output is not None:
            return output, None
        return super().forward(hidden_states, input_dimensions, always_partition, **kwargs)


FORMS = {
    "ViTLayer": PlainLayer,
    "DeiTLayer": PlainLayer,
    "Dinov2Layer": PlainLayer,
    "BeitLayer": RelativePositionLayer,
    "SwinLayer": WindowLayer,
}
"""By the name of the stock class."""


def run_whole(layer: nn.Module, backend: str | None) -> None:
    """Let a stock transformer layer with packed modules run as one kernel where it can, in place."""
    form = FORMS.get(type(layer).__name__)
    if form is None or not _is_packed(layer):
        return
    layer.__class__ = _whole_class(type(layer), form)
    layer.layer_engine = WholeLayerEngine(backend)


def run_modules(layer: nn.Module) -> None:
    """Undo `run_whole`."""
    del layer.layer_engine
    layer.__class__ = type(layer).__bases__[-1]


def runs_whole(module: nn.Module) -> bool:
    """Whether `run_whole` changed this module."""
    return isinstance(module, _WholeLayer)


@cache
def _whole_class(stock: type[nn.Module], form: type[_WholeLayer]) -> type[nn.Module]:
    # The name stays: transformers and accelerate know classes by it.
    return type(stock.__name__, (form, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})


def _rebuild(stock: type[nn.Module], form: type[_WholeLayer]) -> nn.Module:
    made = _whole_class(stock, form)
    return made.__new__(made)


def _own_hooks(module: nn.Module) -> int:
    """How many hooks of `module` are those that quantizing it put there."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return sum(hook in (quantize_shared_input, require_quantized_attention) for hook in hooks)


def _is_packed(layer: nn.Module) -> bool:
    """Whether all modules are there that the kernel computes, with quantizers it can take."""
    attention, mlp = getattr(layer, "attention", None), getattr(layer, "mlp", None)
    linears = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears += [getattr(mlp, name, None) for name in ("fc1", "fc2")]
    if not all(isinstance(linear, PackedLinear) for linear in linears):
        return False
    quantizers = [getattr(attention, "input_quantizer", None), *(linear.input_quantizer for linear in linears[3:])]
    if not all(isinstance(quantizer, PackedActivationQuantizer) for quantizer in quantizers):
        return False
    entering, context, first, second = quantizers
    if any(quantizer.groups.count > 1 for quantizer in (entering, first, second)) or context.offset is not None:
        return False
    heads = attention.num_attention_heads
    return can_be_coded(getattr(attention, "attention_quantizers", None)) and all(
        quantizer.groups.count in (1, heads) for quantizer in (context, *attention.attention_quantizers.values())
    )


def _lay_out(layer: nn.Module) -> LayerKernel | None:
    """The kernel of a layer; None if a number of it is not float32, or its activation function has too many steps."""
    attention, mlp = layer.attention, layer.mlp
    names = next(names for names in LAYER_NORMS if hasattr(layer, names[0]))
    norms = [getattr(layer, name) for name in names]
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    numbers = [p for norm in norms for p in (norm.weight, norm.bias)]
    numbers += [
        linear.bias for linear in (*projections, attention.o_proj, mlp.fc1, mlp.fc2) if linear.bias is not None
    ]
    if any(x is None or x.dtype is not torch.float32 for x in numbers):
        return None
    function = mlp.activation_fn.function if isinstance(mlp.activation_fn, CodedActivation) else mlp.activation_fn
    activation = Staircase.of(function, mlp.fc2.input_quantizer)
    if not activation.fits():
        return None
    first_factor, second_factor = residual_factors(layer)
    products = [
        FoldedProduct.of(
            [ScaledWeight.of(projection) for projection in projections],
            attention.input_quantizer,
            scale_of_outputs(attention, projections),
        ),
        _folded(attention.o_proj, first_factor),
        _folded(mlp.fc1),
        _folded(mlp.fc2, second_factor),
    ]
    quantizers = [attention.attention_quantizers[name] for name in QUANTIZED_TENSORS]
    quantizers.append(attention.o_proj.input_quantizer)
    scales, levels = scales_and_levels(quantizers, attention.num_attention_heads)
    return LayerKernel(
        list(zip(norms, (attention.input_quantizer, mlp.fc1.input_quantizer), strict=True)),
        products,
        activation,
        scales,
        levels,
        attention.scaling,
    )


def _folded(linear: PackedLinear, factor: Tensor | None = None) -> FoldedProduct:
    folded = FoldedProduct.of([ScaledWeight.of(linear)], linear.input_quantizer)
    return folded if factor is None else folded.times(factor)
