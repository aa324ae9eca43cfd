"""The kernels compiled ahead of time: what must hold of their machine code, and no step back from the table."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from slotattn_fast.kernels import mixture_ops, slot_ops
from slotattn_fast.kernels.launch import CallConfig
from torch import Tensor

from benchmarks import aot, cost
from benchmarks.aot import Result, key, known, load, row_id, violations
from benchmarks.aot_rows import CASES, VARIANTS, Launch, Row, rows
from benchmarks.machine_code import TARGETS, read_amdgcn, read_sass, wrong_descriptors

ROOT = Path(__file__).parent.parent
TRITON = metadata.version("triton")
COMMITTED = {key(result): result for result in load(ROOT / aot.RESULTS / "aot.csv") if result["triton"] == TRITON}
needs_figures = pytest.mark.skipif(not COMMITTED, reason=f"aot.csv has no rows of Triton {TRITON}")


def benchmarks_aot(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as Triton's interpreter is on in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_only_is_a_regular_expression() -> None:
    done = benchmarks_aot("--list", "--only", "(")
    assert done.returncode == 2
    assert "--only: got '(', expected a regular expression (missing )" in done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The quick rows, by id."""
    folder = tmp_path_factory.mktemp("aot")
    done = benchmarks_aot("--quick", "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "aot.md").read_text().count("discovery") > 1
    return {row_id(result): result for result in load(folder / "aot.csv")}


@needs_figures
@pytest.mark.parametrize("row", [row.id for row in aot.chosen(None, quick=True)])
def test_machine_code(row: str, measured: dict[str, Result]) -> None:
    result = measured[row]
    found = violations(result, COMMITTED[key(result)])
    excused = [entry for entry in (known(result, column) for column, _ in found) if entry]
    if found and len(excused) == len(found):
        pytest.xfail("; ".join(sorted({entry.why for entry in excused})))
    assert not found


@pytest.mark.slow
@needs_figures
def test_machine_code_of_every_row() -> None:
    done = benchmarks_aot("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_figures
def test_the_committed_table_is_whole_and_good() -> None:
    assert [row_id(result) for result in COMMITTED.values()] == [row.id for row in rows()]
    for result in COMMITTED.values():
        for column, sentence in violations(result, None):
            assert known(result, column), (row_id(result), sentence)


def good(**changed: str) -> Result:
    """A result that violates nothing, but for what is changed."""
    result = dict.fromkeys(("stack_bytes", "mma", "mfma", "fp64", "atomics", "wrong_descriptors"), "0")
    result |= {"registers": "128", "shared_bytes": "40000", "programs_per_sm": "4", "wgmma": "8", "async16": "8"}
    result |= {"loop_instructions": "400", "error": "", "kernel": "forward", "dtype": "bf16", "target": "sm_90"}
    return result | changed


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"error": "error: no"}, "error"),
        ({"stack_bytes": "8"}, "stack_bytes"),
        ({"shared_bytes": str((227 << 10) + 1)}, "shared_bytes"),
        ({"shared_bytes": str((163 << 10) + 1), "target": "sm_80", "mma": "8"}, "shared_bytes"),
        ({"shared_bytes": str((64 << 10) + 1), "target": "gfx942", "mfma": "8"}, "shared_bytes"),
        ({"wgmma": "0", "mma": "8"}, "wgmma"),
        ({"wgmma": "0", "dtype": "fp16"}, "mma"),
        ({"wgmma": "0", "dtype": "fp16", "target": "gfx942"}, "mma"),
        ({"async16": "0"}, "async16"),
        ({"fp64": "1"}, "fp64"),
        ({"atomics": "1"}, "atomics"),
        ({"wrong_descriptors": "1"}, "wrong_descriptors"),
        ({"loop_instructions": "421"}, "loop_instructions"),
        ({"programs_per_sm": "3"}, "programs_per_sm"),
    ],
)
def test_violations(changed: dict[str, str], column: str) -> None:
    assert violations(good(), good()) == []
    assert violations(good(wgmma="0", dtype="fp32"), good()) == []
    assert violations(good(loop_instructions="420"), good()) == []
    assert violations(good(stack_bytes="8", async16="0", target="gfx942"), good()) == []
    assert violations(good(wgmma="0", async16="0", kernel="mixture"), good()) == []
    assert [name for name, _ in violations(good(**changed), good())] == [column]


SASS = """
        /*0000*/                   MUFU.RSQ64H R1, R2 ;
        /*0010*/                   F2F.F32.F64 R1, R2 ;
.L_x_0:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64], P1 ;
        /*0030*/                   LDGSTS.E [R1], desc[UR4][R2.64], P1 ;
        /*0040*/                   HGMMA.64x16x16.F32.BF16 R1, R2, gdesc[UR4], R1 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   DADD R1, R2, R3 ;
        /*0070*/                   REDUX.SUM UR1, R2 ;
.L_x_1:
        /*0080*/              @!UP0 BRA `(.L_x_0) ;
        /*0090*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R1 ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
"""


def test_read_sass() -> None:
    code = read_sass(SASS, "REG:40 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:632", 1024)
    assert (code.registers, code.stack, code.shared) == (40, 24, 1024)
    assert (code.instructions, code.loop) == (12, 7)
    assert (code.wgmma, code.mma, code.async16, code.fp64, code.atomics) == (1, 0, 1, 2, 1)
    assert code.kinds == {"global": 2, "control": 2, "tensor core": 1, "integer, move": 1, "shuffle": 1}


RIGHT = """
        /*1db0*/                   UMOV UR4, URZ ;
        /*1dd0*/                   UIADD3.X UR7, UR4, 0x40000040, URZ, UP0, !UPT ;
        /*1de0*/                   UIADD3.X UR9, URZ, -0x3ffffff0, URZ, UP1, !UPT ;
        /*1df0*/                   UIADD3.X UR9, UR16, 0x1, URZ, UP1, !UPT ;
        /*1e00*/                   IADD3.X R9, R16, -0x3ffffff0, RZ, P1, !PT ;
"""
# As in a kernel that read beyond its shared memory.
WRONG = """
        /*0670*/                   ULEA UR16, UR5, UR16, 0x18 ;
        /*31b0*/                   UIADD3 UR6, UP0, UR16, 0x20, URZ ;
        /*31d0*/                   UIADD3.X UR7, UR16, -0x3ffffff0, URZ, UP0, !UPT ;
"""
OVERWRITTEN = """
        /*1da0*/                   UMOV UR5, URZ ;
        /*1db0*/                   UIADD3.64 UR4, UR8, 0x2, URZ ;
        /*1dd0*/                   UIADD3.X UR7, UR5, 0x40000040, URZ, UP0, !UPT ;
"""


@pytest.mark.parametrize(("sass", "count"), [(SASS, 0), (RIGHT, 0), (WRONG, 1), (OVERWRITTEN, 1), (WRONG + RIGHT, 1)])
def test_descriptors_from_another_register(sass: str, count: int) -> None:
    assert wrong_descriptors(sass) == count


AMDGCN = """
\tv_cvt_f32_f64_e32 v1, v[2:3]
.LBB0_1:                                ; =>This Inner Loop Header
\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
\tv_fma_f64 v[0:1], v[2:3], v[4:5], v[6:7]
\ts_cbranch_scc1 .LBB0_1
\tglobal_atomic_add_f32 v0, v1, s[0:1]
    .private_segment_fixed_size: 12
    .vgpr_count:     257
"""


def test_read_amdgcn() -> None:
    code = read_amdgcn(AMDGCN, 1024)
    assert (code.registers, code.stack, code.shared) == (257, 12, 1024)
    assert (code.instructions, code.loop, code.mfma, code.fp64, code.atomics) == (5, 3, 1, 1, 1)


@pytest.mark.parametrize(
    ("registers", "shared", "target", "programs"),
    [
        *((128, 0, "sm_90", 4), (129, 0, "sm_90", 3), (32, 0, "sm_90", 16)),
        *((32, 75 << 10, "sm_90", 3), (32, 76 << 10, "sm_90", 2)),
        *((128, 0, "gfx942", 4), (32, 33 << 10, "gfx942", 1)),
    ],
)
def test_programs_at_once(registers: int, shared: int, target: str, programs: int) -> None:
    code = read_sass("", f"REG:{registers} STACK:0 SHARED:0 LOCAL:0", shared)
    assert aot.programs_per_multiprocessor(code, 4, TARGETS[target]) == programs


def test_a_column_that_older_rows_lack(tmp_path: Path) -> None:
    aot.save(tmp_path / "aot.csv", [{"case": "a", "loop": "1"}, {"case": "b", "loop": "2", "new": "3"}])
    assert aot.load(tmp_path / "aot.csv") == [
        {"case": "a", "loop": "1", "new": ""},
        {"case": "b", "loop": "2", "new": "3"},
    ]


def test_merged_keeps_other_versions_and_drops_what_left_the_list() -> None:
    def result(case: str, triton: str, loop: str) -> Result:
        return {**dict(zip(aot.KEY, (case, "forward", "bf16", "sm_90", triton), strict=True)), "loop": loop}

    old = [result("discovery", "3.10.0", "1"), result("discovery", "3.9.0", "2"), result("gone", "3.9.0", "3")]
    new = [result("discovery", "3.9.0", "4"), result("width 48", "3.9.0", "5")]
    assert [x["loop"] for x in aot.merged(old, new, complete=True)] == ["4", "5", "1"]
    assert [x["loop"] for x in aot.merged(old, new, complete=False)] == ["4", "5", "3", "1"]


TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.bool: "*u1"}


@pytest.mark.parametrize("id", ["discovery", "set prediction", "tetrominoes", "width 48", "slots 33", "iterations 8"])
def test_arguments_are_those_of_the_launchers(id: str) -> None:
    """What is compiled here is what a call on a device would compile."""
    case = next(case for case in CASES if case.id == id)
    shape = cost.Shape(case.B, case.N, case.D_in, case.K, 64, case.T, torch.bfloat16)
    forward, backward = cost.plans(shape)
    forward_passes, backward_passes = (
        [launch for launch in plan.launches if launch.kernel.startswith("attend")] for plan in (forward, backward)
    )
    launches = dict(zip(("forward, first", "forward"), forward_passes, strict=False))
    launches |= dict(zip(("backward, inputs", "backward, query"), reversed(backward_passes), strict=False))
    assert len(launches) == 4
    for variant, launch in launches.items():
        assert_compiled_alike(launch, Row(case, variant, "bf16", "sm_90"))


def test_arguments_on_the_chip_are_those_of_the_launcher() -> None:
    case = next(case for case in CASES if case.id == "set prediction" and "on chip" in case.variants)
    shape = cost.Shape(case.B, case.N, case.D_in, case.K, case.D, case.T, torch.bfloat16)
    forward, _ = cost.plans(shape, config=CallConfig(case.B, on_chip=True))
    assert_compiled_alike(forward.launches[-1], Row(case, "on chip", "bf16", "sm_90"))


@pytest.mark.parametrize(
    ("id", "precision", "variant"),
    [
        ("discovery", "tf32x3", "weights"),
        ("discovery", "tf32", "weights, tf32"),
        ("set prediction", "tf32x3", "weights"),
    ],
)
def test_arguments_for_the_weights_are_those_of_the_launcher(
    id: str, precision: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_ops, "precision", lambda dtype: precision)
    case = next(case for case in CASES if case.id == id and variant in case.variants)
    shape = cost.Shape(case.B, case.N, case.D_in, case.K, case.D, case.T, torch.bfloat16)
    launch = next(launch for launch in cost.plans(shape)[1].launches if launch.kernel == "weights_bwd_kernel")
    assert_compiled_alike(launch, Row(case, variant, "fp32", "sm_90"))


@pytest.mark.parametrize("id", ["discovery", "multi-dsprites", "tetrominoes", "slots 64", "feature map"])
def test_arguments_at_the_decoders_end_are_those_of_the_launchers(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.id == id and "mixture" in case.variants)
    launches = {}

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(mixture_ops, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, **rest: Any) -> None:
                options = {name: rest.pop(name) for name in [*rest] if name not in self.kernel.arg_names}
                bound = inspect.signature(self.kernel.fn).bind(*arguments, **rest).arguments
                launches[self.name] = cost.Launch(self.name, grid, bound, options)

            return launch

    for name in ("mixture_loss_fwd_kernel", "mixture_loss_bwd_kernel"):
        monkeypatch.setattr(mixture_ops, name, Recorder(name))
    size, order = isqrt(case.N), torch.contiguous_format if case.nchw else torch.channels_last
    maps = torch.empty(case.B * case.K, 4, size, size, dtype=torch.bfloat16, device="meta", memory_format=order)
    maps = maps.unflatten(0, (case.B, case.K))
    images = torch.empty(case.B, 3, size, size, device="meta", memory_format=torch.channels_last)
    mixture_ops.mixture_loss(maps, images)
    mixture_ops.mixture_loss_backward(torch.empty((), device="meta"), maps, images)
    for variant, launch in zip(("mixture", "mixture, backward"), launches.values(), strict=True):
        row = Row(case, variant, "bf16", "sm_90")
        assert_compiled_alike(launch, row)
        assert launch.grid == (row.launch().tiles,)


def assert_compiled_alike(launch: cost.Launch, row: Row) -> None:
    expected: Launch = row.launch()
    assert VARIANTS[row.variant].kernel == launch.kernel
    assert launch.options == expected.options
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            assert expected.arguments[name] == TYPES[value.dtype], name
            assert value.storage_offset() * value.element_size() % 16 == 0, name
        elif isinstance(value, float):
            assert expected.arguments[name] == "fp32", name
        else:
            assert expected.arguments[name] == value, name


@needs_figures
def test_an_image_lies_in_shared_memory() -> None:
    """All of it, once; so no load of it stands in the loop over the iterations."""
    found = {row.id: COMMITTED[(*row.id.split("/"), TRITON)] for row in rows() if row.variant == "on chip"}
    assert all("tensor core" in result["loop_kinds"] for result in found.values())
    one_block, all_blocks = (found[f"{id}/on chip/bf16/sm_90"] for id in ("one block, slots 10", "set prediction"))
    assert int(all_blocks["shared_bytes"]) - int(one_block["shared_bytes"]) == (1024 - 128) * 64 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "no such row"], "no row's id contains 'no such row'"), (["--quik"], "unrecognized arguments: --quik")],
)
def test_errors(arguments: list[str], message: str) -> None:
    done = benchmarks_aot(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_and_list() -> None:
    assert "--check" in benchmarks_aot("--help").stdout
    assert "discovery/forward, first/bf16/gfx942" in benchmarks_aot("--list").stdout.splitlines()
