"""What a compiled kernel is made of: compiles a kernel for a target that need not be there, and reads its machine code.

The counts are static: how often an instruction stands in the code, not how often it runs. The main loop is what lies
between a label and the branch back to it, the longest such piece.
"""

import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

KERNELS = Path(__file__).parent.parent / "kernels"


class Target(NamedTuple):
    """A device, by what one of its multiprocessors holds."""

    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    registers: int  # a multiprocessor, 32 bits each
    register_unit: int  # a warp gets registers in multiples of this
    shared: int  # bytes a multiprocessor
    shared_limit: int  # bytes a program
    shared_reserved: int  # bytes that the system takes of each program
    warps: int  # a multiprocessor


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 108, 65536, 256, 164 << 10, 163 << 10, 1 << 10, 64),
    "sm_89": Target("cuda", 89, 32, 128, 65536, 256, 100 << 10, 99 << 10, 1 << 10, 48),
    "sm_90": Target("cuda", 90, 32, 132, 65536, 256, 228 << 10, 227 << 10, 1 << 10, 64),
    "gfx942": Target("hip", "gfx942", 64, 304, 4 * 512 * 64, 8 * 64, 64 << 10, 64 << 10, 0, 32),
}

# The kinds of instructions in a loop, by the names of SASS without their suffixes. The first that fits counts.
KINDS = {
    "tensor core": "HGMMA|HMMA|WARPGROUP.*",
    "fp32": "FADD|FMUL|FFMA|FMNMX.*|FSEL|FSETP|FCHK|FSET",
    "exp, 1/x": "MUFU",
    "convert": "F2FP|F2F|I2F.*|F2I|HADD2|HMUL2|HFMA2|PRMT",
    "shuffle": "SHFL|REDUX",
    "shared": "LDS|STS|LDSM|STSM|ATOMS",
    "global": "LDG|STG|LDGSTS|LDGDEPBAR|DEPBAR|ATOMG|RED|REDG|LD|ST",
    "stack": "LDL|STL",
    "barrier": "BAR|WARPSYNC|SYNCS|MEMBAR|FENCE.*|ERRBAR",
    "control": "BRA|BSSY|BSYNC|CALL|RET|EXIT|BREAK|NOP",
}
OTHER = "integer, move"


class NoSuchArgument(ValueError):
    """The message says what to add and where."""


@dataclass(frozen=True)
class Code:
    """A compiled kernel in figures."""

    registers: int  # a thread
    stack: int  # bytes a thread
    shared: int  # bytes a program
    instructions: int
    loop: int  # instructions of the main loop; 0 without one
    wgmma: int
    mma: int
    mfma: int
    async16: int  # asynchronous copies of 16 bytes a thread
    fp64: int  # arithmetic, not conversions
    atomics: int
    wrong_descriptors: int  # of operands of wgmma
    kinds: dict[str, int]  # of the loop


@functools.cache
def kernel_module(name: str) -> ModuleType:
    """`kernels/<name>.py`, which imports Triton alone; its package would import torch."""
    package = ModuleType("kernels_without_torch")
    package.__path__ = [str(KERNELS)]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{name}")


class CompilationFailed(RuntimeError):
    """The message is the compiler's."""


def compile_apart(module: str, kernel: str, arguments: dict[str, Any], options: dict[str, Any], target: str) -> Code:
    """`read(compiled(...))` in a process of its own, as a fault in LLVM ends the process that it happens in."""
    import triton  # noqa: F401  # once, for all processes forked from here

    kernel_module(module)
    with tempfile.NamedTemporaryFile() as messages, ProcessPoolExecutor(1, get_context("fork")) as pool:
        try:
            return pool.submit(_compile_here, messages.name, module, kernel, arguments, options, target).result()
        except NoSuchArgument:
            raise
        except Exception as error:  # whatever a compiler raises; or BrokenProcessPool
            lines = Path(messages.name).read_text(errors="replace").splitlines()
            said = [line.strip() for line in lines if re.search(r"error:|assert", line, re.IGNORECASE)]
            text = said[0] if said else str(error).strip().splitlines()[-1]
            raise CompilationFailed(" ".join(text.split())[:200]) from error


def _compile_here(messages: str, *arguments: Any) -> Code:
    with open(messages, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    return read(compiled(*arguments))


def compiled(module: str, kernel: str, arguments: dict[str, Any], options: dict[str, Any], target: str) -> Any:
    """The kernel as `triton.compile` gives it.

    Args:
        arguments: by parameter. A pointer is a string such as "*bf16" and takes an allocation of PyTorch's, aligned to
            16 bytes; a scalar that is not to be specialised is "fp32" or "fp64". An int is specialised as Triton's
            launcher does it. Anything else, and whatever the kernel takes as tl.constexpr, is a constant.
        options: num_warps and so on.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = getattr(kernel_module(module), kernel)
    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(fn.params):
        if param.name not in arguments:
            raise NoSuchArgument(
                f"{kernel} takes {param.name}, of which benchmarks/aot_rows.py knows nothing: add it there"
            )
        value = arguments[param.name]
        kind, divisible = _specialised(value, param.is_constexpr)
        if param.do_not_specialize and not param.is_constexpr and isinstance(value, int):
            kind, divisible = "i32", False
        if param.do_not_specialize_on_alignment:
            divisible = False
        signature[param.name] = kind
        if kind == "constexpr":
            constants[param.name] = value
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
        if kind.startswith("*") and TARGETS[target].backend == "hip":
            attributes.setdefault((i,), []).append(["tt.pointer_range", 32])  # tensors of less than 2 GiB
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget(*TARGETS[target][:3]), options=options)


def _specialised(value: Any, constant: bool) -> tuple[str, bool]:
    """The type of an argument in Triton's signature, and whether it is known to be divisible by 16."""
    if constant or value is None or value is True or value is False:
        return "constexpr", False
    if isinstance(value, int):
        return ("constexpr", False) if value == 1 else ("i32" if value < 1 << 31 else "i64", value % 16 == 0)
    if value in ("fp32", "fp64") or value.startswith("*"):
        return value, value.startswith("*")
    return "constexpr", False


def read(kernel: Any) -> Code:
    """The figures of what `compiled` gave."""
    if "cubin" not in kernel.asm:
        return read_amdgcn(kernel.asm["amdgcn"], kernel.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", "-ndf", file.name)
    return read_sass(sass, resources, kernel.metadata.shared)


def _tool(name: str, *arguments: str) -> str:
    """What one of the CUDA tools that Triton brings along prints."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def read_sass(sass: str, resources: str, shared: int) -> Code:
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", resources)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no resources: {resources}")
    registers, stack, local = map(int, found.groups())
    lines = list(_sass_lines(sass))
    names = [name for name, _, _ in lines if name]
    loop = _main_loop(lines)
    short = Counter(name.split(".")[0] for name in names)
    return Code(
        registers=registers,
        stack=stack + local,
        shared=shared,
        instructions=len(names),
        loop=len(loop),
        wgmma=short["HGMMA"],
        mma=short["HMMA"],
        mfma=0,
        async16=sum(name.startswith("LDGSTS") and ".128" in name for name in names),
        fp64=sum(bool(re.match(r"D(ADD|MUL|FMA|SETP|MNMX|SET)\b|MUFU\.R\w+64H|DMMA", name)) for name in names),
        atomics=sum(short[name] for name in ("ATOM", "ATOMG", "ATOMS", "RED", "REDG", "UBLKRED")),
        wrong_descriptors=wrong_descriptors(sass),
        kinds=dict(Counter(map(_kind, loop)).most_common()),
    )


def _sass_lines(sass: str) -> Iterator[tuple[str, str, str]]:
    """Of every line of code: the instruction, the label that it branches to, or else the label that it is."""
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            yield "", "", label[1]
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*?);", line):
            to = re.search(r"`\((\.L_x_\d+)\)", code[2]) if code[1].startswith("BRA") else None
            yield code[1], to[1] if to else "", ""


def wrong_descriptors(sass: str) -> int:
    """How many descriptors of wgmma operands are built from a register that is not 0 where their upper word begins.

    A descriptor says where in shared memory an operand lies; its upper word is a constant, which has the kind of the
    swizzle in its top bits and is added, with the carry of the lower word, to 0. ptxas 12.8 was seen to add it to the
    address of the shared memory, and that address to the lower word: on an H200 the operand is then read from beyond
    the shared memory, at the very instructions that this finds. Triton's pull request 7197 works around a like fault.
    """
    last: dict[str, str] = {}  # by register, the end of the instruction that wrote it
    wrong = 0
    for name, operands in re.findall(
        r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)\s+(.*?) ;", sass, re.MULTILINE
    ):
        target, *sources = (operand.strip().removesuffix(".reuse") for operand in operands.split(","))
        if name == "UIADD3.X" and len(sources) > 1 and re.fullmatch(r"-?0x[0-9a-f]+", sources[1]):
            swizzled = (int(sources[1], 16) & 0xFFFFFFFF) >> 28 in (0x4, 0x8, 0xC)
            wrong += swizzled and "URZ" not in (sources[0], last.get(sources[0]))
        if register := re.fullmatch(r"UR(\d+)", target):
            last[target] = sources[0] if name == "UMOV" else name
            if ".64" in name:
                last[f"UR{int(register[1]) + 1}"] = name
    return wrong


def read_amdgcn(assembly: str, shared: int) -> Code:
    def entry(name: str) -> int:
        found = re.search(rf"^\s*-?\s*\.{name}:\s+(\d+)", assembly, re.MULTILINE)
        return int(found[1]) if found else 0

    lines = list(_amdgcn_lines(assembly))
    names = [name for name, _, _ in lines if name]
    return Code(
        registers=entry("vgpr_count"),
        stack=entry("private_segment_fixed_size"),
        shared=shared,
        instructions=len(names),
        loop=len(_main_loop(lines)),
        wgmma=0,
        mma=0,
        mfma=sum("_mfma_" in name for name in names),
        async16=sum("_lds_dwordx4" in name for name in names),
        fp64=sum("_f64" in name and not re.search(r"_cvt_|_mov_|_frexp_", name) for name in names),
        atomics=sum("atomic" in name or bool(re.match(r"ds_(add|sub|min|max|inc|dec|cmpst)_", name)) for name in names),
        wrong_descriptors=0,
        kinds={},
    )


def _amdgcn_lines(assembly: str) -> Iterator[tuple[str, str, str]]:
    """As `_sass_lines`."""
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\d+_\d+):", line):
            yield "", "", label[1]
        elif code := re.match(r"\t([a-z]+_\w+)(.*)", line):
            to = re.search(r"\.LBB\d+_\d+", code[2]) if "branch" in code[1] else None
            yield code[1], to[0] if to else "", ""


def _main_loop(lines: list[tuple[str, str, str]]) -> list[str]:
    """The instructions of the longest piece from a label to a branch back to it."""
    start_of: dict[str, int] = {}
    names: list[str] = []
    longest = (0, 0)
    for name, to, label in lines:
        if label:
            start_of[label] = len(names)
            continue
        names.append(name)
        # A branch to itself ends every SASS function: padding, no loop.
        if to in start_of and len(names) - start_of[to] > max(1, longest[1] - longest[0]):
            longest = start_of[to], len(names)
    return names[slice(*longest)]


def _kind(name: str) -> str:
    short = name.split(".")[0]
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, short)), OTHER)


def programs_per_multiprocessor(code: Code, num_warps: int, target: Target) -> int:
    """How many programs fit at once: bound by registers, shared memory and warps."""
    per_warp = -(-code.registers * target.warp_size // target.register_unit) * target.register_unit
    by_registers = target.registers // max(per_warp * num_warps, 1)
    by_shared = target.shared // max(code.shared + target.shared_reserved, 1)
    return min(by_registers, by_shared, target.warps // num_warps)


def grouped(kinds: dict[str, int]) -> str:
    """One line of them, the most frequent first."""
    return "; ".join(f"{kind} {count}" for kind, count in kinds.items())
