"""The checks of a call, one set for every backend: an error names the argument, what came and what was expected."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .reference import CHOICES
from .reference.slot_attention import check_epsilons

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Every layer of the iterations: its parameters and their shapes.
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "norm_input": {"weight": ("D_in",), "bias": ("D_in",)},
    "norm_slots": {"weight": ("D",), "bias": ("D",)},
    "to_q": {"weight": ("inner", "D"), "bias": ("inner",)},
    "to_k": {"weight": ("inner", "D_in"), "bias": ("inner",)},
    "to_v": {"weight": ("inner", "D_in"), "bias": ("inner",)},
    "combine_heads": {"weight": ("D", "inner"), "bias": ("D",)},
    "norm_updates": {"weight": ("D",), "bias": ("D",)},
    "gru": {"weight_ih": ("3 D", "D"), "weight_hh": ("3 D", "D"), "bias_ih": ("3 D",), "bias_hh": ("3 D",)},
    "norm_pre_ff": {"weight": ("D",), "bias": ("D",)},
    "mlp.0": {"weight": ("hidden", "D"), "bias": ("hidden",)},
    "mlp.2": {"weight": ("D", "hidden"), "bias": ("D",)},
}
NORMS = tuple(layer for layer in LAYERS if layer.startswith("norm_"))
TYPES = {layer: nn.LayerNorm if layer in NORMS else nn.GRUCell if layer == "gru" else nn.Linear for layer in LAYERS}
SHAPES = {f"{layer}.{kind}": shape for layer, kinds in LAYERS.items() for kind, shape in kinds.items()}
OPTIONAL = {"to_q.bias", "to_k.bias", "to_v.bias", "combine_heads.bias"}
# Layers that are there together or not at all, each by the names of its parameters.
TOGETHER = [
    {f"{layer}.{kind}" for layer in layers for kind in LAYERS[layer]}
    for layers in [("to_q", "to_k", "to_v"), ("mlp.0", "mlp.2"), *((layer,) for layer in LAYERS)]
]
NOT_ITERATED = ("slots_mu", "slots_logsigma")  # parameters of the modules that only make the initial slots


def check_settings(iters: int, eps: float, norm_eps: float, return_attn: bool | str, **choices: str) -> None:
    """Raise ValueError for a setting out of range; `choices` are settings of `CHOICES` or `attn_over`."""
    if iters < 0:
        raise ValueError(f"iters must be at least 0, got {iters}")
    check_epsilons(eps, norm_eps)
    if return_attn not in (False, True, "last", "all"):
        raise ValueError(f'return_attn must be False, True, "last" or "all", got {return_attn!r}')
    if return_attn and return_attn != "all" and iters == 0:
        raise ValueError(f"return_attn={return_attn!r} needs at least one iteration, got iters=0")
    for name, value in choices.items():
        allowed = CHOICES.get(name, ("slots", "inputs"))
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_inputs(inputs: Tensor, input_dim: int | None = None) -> None:
    """Raise TypeError or ValueError unless inputs is a floating-point tensor [B, N, input_dim] with N of at least 1."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [B, N, D_in], got {type(inputs).__name__}")
    if inputs.dtype not in FLOATS:
        raise TypeError(f"inputs must be float64, float32, bfloat16 or float16, got {inputs.dtype}")
    if inputs.dim() != 3:
        raise ValueError(f"inputs must have 3 dimensions [B, N, D_in], got shape {list(inputs.shape)}")
    if input_dim is not None and inputs.shape[2] != input_dim:
        raise ValueError(f"inputs must have width {input_dim} (input_dim), got shape {list(inputs.shape)}")
    if inputs.shape[1] == 0 or inputs.shape[2] == 0:
        raise ValueError(f"inputs must have at least one input and one feature, got shape {list(inputs.shape)}")


def check_slots(
    slots: Tensor, inputs: Tensor, num_slots: int | None = None, dim: int | None = None, name: str = "slots_init"
) -> None:
    """Raise TypeError or ValueError unless the initial slots are a tensor [B, num_slots, dim], none of them 0."""
    if not isinstance(slots, Tensor):
        raise TypeError(f"{name} must be a tensor [B, K, D], got {type(slots).__name__}")
    if slots.dim() != 3 or slots.shape[0] != inputs.shape[0]:
        expected = f"[B, K, D] with B = {inputs.shape[0]} as in inputs"
        raise ValueError(f"{name} must have shape {expected}, got {list(slots.shape)}")
    if num_slots is not None and slots.shape[1] != num_slots:
        raise ValueError(f"{name} must have {num_slots} slots (num_slots), got shape {list(slots.shape)}")
    if dim is not None and slots.shape[2] != dim:
        raise ValueError(f"{name} must have width {dim} (dim), got shape {list(slots.shape)}")
    if slots.shape[1] == 0 or slots.shape[2] == 0:
        raise ValueError(f"{name} must have at least one slot and one feature, got shape {list(slots.shape)}")


def check_layer(name: str, layer: nn.Module) -> None:
    """Raise TypeError for a layer of a module that does other things with its parameters than Algorithm 1 does.

    Layers are not called, so what replaced or changed one would be left out in silence.
    """
    if came := _changed(name, layer, TYPES[name]):
        raise refused(name, layer, came)


def refused(name: str, layer: nn.Module, came: str) -> TypeError:
    """The error for a layer; `came` says what it came with or without."""
    expected = TYPES[name].__name__
    return TypeError(f"{name} must be an nn.{expected}, got {type(layer).__name__} {came}; {_NOT_CALLED}")


def check_mlp(mlp: nn.Module | None) -> None:
    """Raise TypeError unless it is Linear, ReLU, Linear, or None."""
    if mlp is None:
        return
    # What stands before and after the ReLU is checked as a layer.
    relu = mlp[1] if isinstance(mlp, nn.Sequential) and len(mlp) == 3 else None
    changed = _changed("mlp", mlp, nn.Sequential)
    if changed is None and isinstance(relu, nn.ReLU):
        changed = _changed("mlp.1", relu, nn.ReLU)
    if changed is not None or not isinstance(relu, nn.ReLU):
        came = f"{type(mlp).__name__}({', '.join(type(layer).__name__ for layer in mlp.children())})"
        came = came if changed is None else f"{came} {changed}"
        raise TypeError(f"mlp must be nn.Sequential(Linear, ReLU, Linear), got {came}; {_NOT_CALLED}")


def _changed(name: str, layer: nn.Module, expected: type[nn.Module]) -> str | None:
    """What makes a layer compute other things than a layer of this type, if anything does.

    A hook that comes after it may, or just look on: it is warned of.
    """
    if type(layer).forward is not expected.forward or "forward" in layer.__dict__:
        return "with a forward of its own"
    if layer._forward_pre_hooks:
        return "with a forward pre-hook"
    if (layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks) and not (
        torch.compiler.is_compiling()
    ):
        warnings.warn(f"hooks on {name} do not run: {_NOT_CALLED}", stacklevel=5)
    return None


_NOT_CALLED = (
    "layers are not called here: change parameters by torch.nn.utils.parametrize, or take "
    "slotattn_fast.reference.SlotAttention, which calls them"
)


def check_tensors(
    inputs: Tensor,
    slots: Tensor,
    params: Mapping[str, Tensor],
    heads: int,
    mask: Tensor | None,
    slot_mask: Tensor | None,
) -> None:
    """Raise TypeError or ValueError where shapes, dtypes or devices of a call's tensors do not fit together."""
    if not isinstance(params, Mapping):
        expected = "tensors by their names, such as dict(module.named_parameters())"
        raise TypeError(f"params must be {expected}, got {type(params).__name__}")
    check_inputs(inputs)
    check_slots(slots, inputs, name="slots")
    _check_params(params, slots.shape[2], inputs.shape[2], heads)
    _check_dtypes(inputs, {"the initial slots": slots, **params})
    for name, value, shape in (("mask", mask, inputs.shape[:2]), ("slot_mask", slot_mask, slots.shape[:2])):
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype != torch.bool:
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a bool tensor (True: takes part), got {came}")
        if value.shape != shape:
            axes = "[B, N]" if name == "mask" else "[B, K]"
            raise ValueError(f"{name} must have shape {axes} = {list(shape)}, got {list(value.shape)}")
        if value.device != inputs.device:
            raise ValueError(f"{name} must be on {inputs.device} as inputs is, got {value.device}")


def autocast_enabled(x: Tensor) -> bool:
    """Whether torch.autocast is on for the device of x; "meta" knows no autocast."""
    # Not by torch.amp.is_autocast_available, which torch.compile of PyTorch 2.11 cannot trace.
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _check_dtypes(inputs: Tensor, others: Mapping[str, Tensor]) -> None:
    device, dtype, autocast = inputs.device, inputs.dtype, autocast_enabled(inputs)
    half = dtype in (torch.bfloat16, torch.float16)
    for name, x in others.items():
        if x.device != device:
            raise ValueError(f"{name} must be on {device} as inputs is, got {x.device}")
        if x.dtype != dtype and not (autocast and x.dtype in FLOATS) and not (half and _is_norm_in_float32(name, x)):
            raise TypeError(
                f"{name} must be {dtype} as inputs is, got {x.dtype}; convert one of them or use torch.autocast"
            )


def _is_norm_in_float32(name: str, x: Tensor) -> bool:
    """As LayerNorms are often kept where all else is in a half type; PyTorch's take that too."""
    return x.dtype == torch.float32 and name.rpartition(".")[0] in NORMS


def _check_params(params: Mapping[str, Tensor], D: int, D_in: int, heads: int) -> None:
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    for name, param in params.items():
        if not isinstance(param, Tensor):
            raise TypeError(
                f"params[{name!r}] must be a tensor, got {type(param).__name__}; leave out what there is none of"
            )
    inner = params["to_q.weight"].shape[0] if "to_q.weight" in params else D
    hidden = params["mlp.0.weight"].shape[0] if "mlp.0.weight" in params else D
    sizes = {"D": D, "D_in": D_in, "inner": inner, "hidden": hidden, "3 D": 3 * D}
    for name, param in params.items():
        if name in NOT_ITERATED:
            continue
        if name not in SHAPES:
            raise ValueError(f"params has {name!r}, which is no parameter of SlotAttention")
        shape = [*map(sizes.__getitem__, SHAPES[name])]
        if [*param.shape] != shape:
            widths = f"input width {D_in}, slot width {D}"
            raise ValueError(f"params[{name!r}] must have shape {shape} ({widths}), got {list(param.shape)}")
    names = set(params)
    for together in TOGETHER:
        if together <= names:  # which is quick
            continue
        missing = together - names - OPTIONAL
        if missing and together & names:
            needed = ", ".join(sorted(missing))
            raise ValueError(f"params lacks {needed}, which belong with the others of that layer")
    if inner % heads != 0:
        raise ValueError(f"heads must divide the projections' width {inner}, got heads={heads}")
    if "combine_heads.weight" not in params and (heads > 1 or inner != D):
        raise ValueError(
            f"heads={heads} of projections of width {inner} need combine_heads.weight for slots of width {D}"
        )
    if "to_q.weight" not in params and D_in != D:
        raise ValueError(f"without projections inputs and slots must be of one width, got {D_in} and {D}")
