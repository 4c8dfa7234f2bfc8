"""Experts of a mixture-of-experts layer on an NVIDIA GPU, over tensors of any DLPack producer.

Needs libartel_c.so (`cargo build --release -p artel-c --features cuda`) and nothing else; include/
artel_moe.h says what shapes and numbers mean. Tensors are used where they lie, nothing is copied:

    experts = Experts(w13, w2, top_k=8, tokens_max=4096, format="bf16", kernel_packs=["sm_90.pack"])
    out = experts(hidden, topk_ids, topk_weights)          # torch: on the current stream
    experts(hidden, topk_ids, topk_weights, out=out, stream=handle)  # anything else

Of experts made with `packed=True`, a call takes pairs id << 16 | bits of the bfloat16 weight, in int32
[T, K], and no weights: `experts(hidden, packed)`.
"""

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from pathlib import Path

OK, INVALID = 0, 1
# Of DLPack: devices and codes of numbers.
CUDA = 2
INT, UINT, FLOAT, BFLOAT = 0, 1, 2, 4
# In DLPack: the legacy default stream, whose handle is 0, and a consumer on the producer's stream.
DEFAULT_STREAM, SAME_STREAM = 1, -1

# What a call takes.
NAMES = ("hidden", "topk_ids", "topk_weights", "out")

# Numbers that hidden states, and plain weights, are made of: code, bits.
NUMBERS = {"bf16": (BFLOAT, 16), "f16": (FLOAT, 16)}
NUMBERS |= {name: (BFLOAT, 16) for name in ("fp8-block128", "fp8-tensor", "fp8-channel")}


class Stack(ctypes.Structure):
    # struct artel_moe_stack
    _fields_ = [
        ("numbers", c_void_p),
        ("number_bytes", c_uint64),
        ("scales", c_void_p),
        ("scale_count", c_uint64),
        ("scale_rows", c_uint64),
        ("scale_columns", c_uint64),
    ]


class Settings(ctypes.Structure):
    # struct artel_moe_settings
    _fields_ = [
        ("settings_bytes", c_uint64),
        ("num_experts", c_uint64),
        ("top_k", c_uint64),
        ("hidden_size", c_uint64),
        ("intermediate_size", c_uint64),
        ("tokens_max", c_uint64),
        ("format", c_char_p),
        ("activation", c_char_p),
        ("kernel_packs", POINTER(c_char_p)),
        ("num_kernel_packs", c_uint64),
        ("device", c_uint64),
        ("packed", c_uint64),
        ("w13", Stack),
        ("w2", Stack),
    ]


class DLTensor(ctypes.Structure):
    # As dlpack.h has it.
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class View:
    """Where a tensor lies on the GPU. Keeps it there while the view lives."""

    def __init__(self, name, tensor, stream=DEFAULT_STREAM):
        self._tensor = tensor
        self._capsule = tensor.__dlpack__(stream=stream)
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        found = DLTensor.from_address(get_pointer(self._capsule, b"dltensor"))
        if found.device_type != CUDA:
            raise ValueError(f"{name} is not on a CUDA device")
        self.name, self.device = name, found.device_id
        self.numbers = (found.code, found.bits)
        self.shape = tuple(found.shape[: found.ndim])
        self.address = (found.data or 0) + found.byte_offset
        count = 1
        for axis in reversed(range(found.ndim)):
            if found.strides and self.shape[axis] > 1 and found.strides[axis] != count:
                raise ValueError(f"{name} is not contiguous")
            count *= self.shape[axis]
        self.count, self.bytes = count, count * found.bits * found.lanes // 8

    def expect(self, shape, numbers):
        """Checks shape and kind of numbers; gives back the address."""
        if self.shape != shape:
            raise ValueError(f"{self.name} has shape {self.shape}, expected {shape}")
        if self.numbers != numbers:
            raise ValueError(f"{self.name} has numbers {self.numbers}, expected {numbers}: code, bits")
        return self.address


def load_library(path=None):
    """libartel_c.so: at `path`, beside this file, or where the system looks."""
    beside = Path(__file__).with_name("libartel_c.so")
    library = ctypes.CDLL(str(path or (beside if beside.exists() else "libartel_c.so")))
    library.artel_moe_version.restype = c_char_p
    library.artel_moe_last_error.restype = c_char_p
    library.artel_moe_plan.restype, library.artel_moe_plan.argtypes = c_char_p, [c_void_p]
    library.artel_moe_create.argtypes = [POINTER(Settings), POINTER(c_void_p)]
    library.artel_moe_forward.argtypes = [c_void_p] * 5 + [c_uint64, c_void_p]
    library.artel_moe_destroy.restype, library.artel_moe_destroy.argtypes = None, [c_void_p]
    return library


def current_stream(device):
    """The stream that torch works on, if torch is in use; else the default stream."""
    torch = sys.modules.get("torch")
    return torch.cuda.current_stream(device).cuda_stream if torch else 0


def is_torch(tensor):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


class Experts:
    """Experts over w13 [E, 2I, H] (gate rows over up rows) and w2 [E, H, I].

    Weights are bfloat16 or float16 as `format` says; in FP8 they are bytes (in torch:
    `w13.view(torch.uint8)`) with float32 scales: for "fp8-block128" [E, ceil(N/128), ceil(K/128)], or
    of another `scale_block`; for "fp8-channel" [E, N]; for "fp8-tensor" w13's [E, 2], w2's [E]. Larger batches than `tokens_max` are cut into steps.
    """

    def __init__(
        self, w13, w2, *, top_k, tokens_max, format, activation="silu", kernel_packs=(),
        w13_scales=None, w2_scales=None, scale_block=(128, 128), packed=False,
        library=None,
    ):
        self._library, self._handle = load_library(library), c_void_p()
        scaled = w13_scales is not None
        numbers = (UINT, 8) if scaled else NUMBERS.get(format)
        first, second = View("w13", w13), View("w2", w2)
        num_experts, hidden_size, intermediate_size = second.shape
        first.expect((num_experts, first.shape[1], hidden_size), numbers)
        second.expect(second.shape, numbers)
        scales = [View("scales of w13", w13_scales), View("scales of w2", w2_scales)] if scaled else []
        for view in scales:
            view.expect(view.shape, (FLOAT, 32))
        self._weights = [first, second, *scales]
        packs = (c_char_p * len(kernel_packs))(*(str(path).encode() for path in kernel_packs))
        blocks = {
            "fp8-tensor": [(intermediate_size, hidden_size), (hidden_size, intermediate_size)],
            "fp8-channel": [(1, hidden_size), (1, intermediate_size)],
        }.get(format, [scale_block if scaled else (0, 0)] * 2)
        views = zip((first, second), blocks)
        stacks = [Stack(view.address, view.bytes, 0, 0, *block) for view, block in views]
        for stack, view in zip(stacks, scales):
            stack.scales, stack.scale_count = view.address, view.count
        settings = Settings(
            ctypes.sizeof(Settings), num_experts, top_k, hidden_size, intermediate_size, tokens_max,
            format.encode(), activation.encode(), packs, len(packs), first.device, int(packed),
            *stacks,
        )
        self._check(self._library.artel_moe_create(ctypes.byref(settings), ctypes.byref(self._handle)))
        self._sizes, self._states = (hidden_size, top_k), NUMBERS.get(format)
        self._packed = packed

    def __call__(self, hidden, topk_ids, topk_weights=None, out=None, stream=None):
        """hidden [T, H], topk_ids int32 [T, K], topk_weights float32 [T, K] -> out [T, H]."""
        if self._packed != (topk_weights is None):
            raise ValueError("topk_weights go with ids, and not with packed pairs")
        own = stream is None
        if own:
            stream = current_stream(self._weights[0].device)
        if out is None:
            out = sys.modules["torch"].empty_like(hidden)
        views = {}
        for name, tensor in zip(NAMES, (hidden, topk_ids, topk_weights, out)):
            if tensor is None:
                continue
            # The producer makes its data ready for the stream that they are used on.
            ready = SAME_STREAM if own and is_torch(tensor) else stream or DEFAULT_STREAM
            views[name] = View(name, tensor, ready)
            if views[name].device != self._weights[0].device:
                raise ValueError(f"{name} is not on the GPU where the weights are")
        (hidden_size, top_k), tokens = self._sizes, views["hidden"].shape[0]
        states, pairs = (tokens, hidden_size), (tokens, top_k)
        hidden_at = views["hidden"].expect(states, self._states)
        ids_at, weights_at = views["topk_ids"].expect(pairs, (INT, 32)), None
        if not self._packed:
            weights_at = views["topk_weights"].expect(pairs, (FLOAT, 32))
        out_at = views["out"].expect(states, self._states)
        self._check(
            self._library.artel_moe_forward(
                self._handle, stream, hidden_at, ids_at, weights_at, tokens, out_at
            )
        )
        return out

    @property
    def plan(self):
        """Which kernels serve which batch sizes and why."""
        return self._library.artel_moe_plan(self._handle).decode()

    def close(self):
        """Frees everything but the weights."""
        handle, self._handle = self._handle, c_void_p()
        self._library.artel_moe_destroy(handle)

    def __del__(self):
        if getattr(self, "_handle", None):
            self.close()

    def _check(self, status):
        if status != OK:
            text = self._library.artel_moe_last_error().decode()
            raise ValueError(text) if status == INVALID else RuntimeError(text)
