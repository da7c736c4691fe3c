import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

import binaries
import static
from atrous_heads import Head, live_pairs
from binaries import Binary, Code
from work import Work, bytes_of, work_of

BENCH = Path(static.__file__).parent
BINARY = Binary(
    registers=128, shared=0, spills=0, warps=4, stages=4, resident=4, loop=100, matrix=0,
    instructions=300,
)  # fmt: skip


def seconds(binary: Binary = BINARY, work: Work | None = None, moved: int = 0, programs: int = 1):
    return static.predict(binary, work or Work(), moved, programs)


@pytest.mark.parametrize("target", binaries.TARGETS)
def test_every_kernel_of_every_configuration_has_a_formula(target: str) -> None:
    with binaries.of_target(target):
        for name, case in static.cases().items():
            launches = binaries.record(case)
            assert launches, name
            for launch in launches:
                work = work_of(launch)
                assert bytes_of(launch) > 0
                assert min(work.matrix, work.plain, work.loaded, work.steps) >= 0


def test_a_convolution_multiplies_what_its_live_taps_and_no_others_want() -> None:
    with binaries.of_target("sm_90"):
        (launch,) = binaries.record(static.cases()["VGG ASPP, batch 4"])
    wanted = 2 * 4 * 512 * 1024 * live_pairs(41, (6, 12, 18, 24), "concat")
    assert work_of(launch).matrix == wanted
    least = 4 * 41**2 * 512 + 4 * 1024 * (9 * 512 + 1) + 4 * 41**2 * 4096
    assert bytes_of(launch) == 2 * least


def test_a_tap_beyond_the_map_is_no_work() -> None:
    with binaries.of_target("sm_90"):
        wide = Head(32, 32, 20, "concat", rates=(19, 20, 30))
        (launch,) = binaries.record(lambda: static._head("implicit", wide, 1))
    assert work_of(launch).matrix == 2 * 32 * 32 * live_pairs(20, (19, 20, 30), "concat")


def test_the_product_of_a_head_has_a_column_for_each_tap_padded_to_16() -> None:
    with binaries.of_target("sm_90"):
        launches = binaries.record(static.cases()["v2 head, batch 1"])
    (product,) = [work_of(each) for each in launches if each.name == "conv_kernel"]
    assert product.matrix == 2 * 65**2 * 2048 * 704
    assert product.steps == 2048 / 64


def test_predictions_follow_bytes_operations_and_instructions() -> None:
    moved = seconds(moved=int(4.8e12))
    assert moved["memory"] == pytest.approx(1 / static.COPY)
    filled = seconds(work=Work(matrix=989e12), programs=132)
    assert filled["arithmetic"] == pytest.approx(1 / static.PRODUCT)
    alone = seconds(work=Work(matrix=989e12), programs=1)
    assert alone["arithmetic"] == pytest.approx(132 * filled["arithmetic"])
    issued = seconds(work=Work(steps=5), programs=133)["issue"]
    assert issued == pytest.approx(2 * 4 * (200 + 5 * 100) / (4 * static.CYCLES))


def test_blocks_that_are_resident_and_stages_shorten_the_waits() -> None:
    steps, programs = Work(steps=8), 132 * 8
    plain = seconds(work=steps, programs=programs)["latency"]
    assert plain == pytest.approx(2 * (static.WAIT + 8 * static.CACHE_WAIT))
    crowded = seconds(replace(BINARY, resident=8), steps, programs=programs)["latency"]
    assert crowded == pytest.approx(plain / 2)
    staged = seconds(replace(BINARY, matrix=1), steps, programs=programs)["latency"]
    assert staged == pytest.approx(2 * (static.WAIT + 2 * static.CACHE_WAIT))


def test_the_floor_is_the_larger_of_bytes_and_operations() -> None:
    assert static.floor(Work(matrix=989e12), 0) == 1
    assert static.floor(Work(plain=67e12), int(9.6e12)) == 2


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        ("sm_90", 32, 0, 4, 16),  # 64 warps
        ("sm_90", 32, 0, 1, 32),  # 32 blocks
        ("sm_90", 255, 0, 8, 1),  # 256 registers x 32 x 8 = a whole register file
        ("sm_90", 112, 131072, 8, 1),  # 228 KB hold one of 129 KB
        ("sm_90", 112, 96 * 1024, 8, 2),
        ("sm_80", 112, 96 * 1024, 8, 1),
        ("gfx942", 128, 0, 4, 4),  # 512 registers of a lane: 4 waves a SIMD
    ],
)
def test_resident_blocks_are_bounded_by_registers_memory_and_warps(
    target: str, registers: int, shared: int, warps: int, expected: int
) -> None:
    assert binaries.resident(target, registers, shared, warps) == expected


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;      /* 0x00000a0000017a02 */
                                                               /* 0x000fe40000000f00 */
        /*0010*/                   LDG.E R2, [R4.64] ;         /* 0x0 */
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x0 */
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;     /* 0x0 */
        /*0040*/               @P0 BRA 0x20 ;                  /* 0x0 */
        /*0050*/                   FFMA R2, R2, R3, R4 ;       /* 0x0 */
        /*0060*/              @!P1 BRA 0x10 ;                  /* 0x0 */
        /*0070*/                   EXIT ;                      /* 0x0 */
        /*0080*/                   BRA 0x80;                   /* 0x0 */
"""
AMD = """
\t.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
kernel:
\ts_load_dwordx4 s[0:3], s[4:5], 0x0
.LBB0_1:                                ; =>This Loop Header: Depth=1
\tv_add_f32 v0, v0, v1
.LBB0_2:
\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
\ts_cbranch_scc1 .LBB0_2
\ts_cbranch_vccnz .LBB0_1
\ts_endpgm
\t.section .rodata
\ts_not_an_instruction
"""


def test_loops_are_found_in_the_assembly_of_both_makers() -> None:
    nvidia, amd = binaries.nvidia_code(SASS), binaries.amd_code(AMD)
    assert (len(nvidia.lines), len(amd.lines)) == (9, 6)
    assert nvidia.jumps == [(4, 2), (6, 1), (8, 8)]
    assert binaries.inner_loop(nvidia) == (2, 4)
    assert binaries.inner_loop(amd) == (2, 3)
    assert binaries.inner_loop(Code(["BRA"], [(0, 0)])) is None


def test_of_two_inner_loops_the_one_with_matrix_instructions_counts() -> None:
    lines = ["HMMA", "BRA", *["FADD"] * 9, "BRA"]
    assert binaries.inner_loop(Code(lines, [(1, 0), (11, 2)])) == (0, 1)


@pytest.mark.slow
def test_a_head_is_compiled_for_every_target_and_recorded(tmp_path: Path) -> None:
    command = [
        sys.executable, str(BENCH / "static.py"), "--cases", "v2 head, batch 1", "--markdown",
        "--out", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(BENCH.parent), "TRITON_INTERPRET": "0"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    (path,) = tmp_path.glob("*-static.json")
    (comparison,) = json.loads(path.read_text())["comparisons"]
    rows = {(row["kernel"], row["target"]): row for row in comparison["rows"]}
    kernels = {"atrous.pack", "atrous.conv", "atrous.gather"}
    assert set(rows) == {(kernel, target) for kernel in kernels for target in binaries.TARGETS}
    for (kernel, target), row in rows.items():
        assert row["registers"] > 0
        assert row["resident"] >= 1
        assert row["spills"] == 0
        assert (row["matrix"] > 0) == (kernel == "atrous.conv")
        assert ("predicted_seconds" in row) == (target == static.PREDICTED)
        if "predicted_seconds" in row:
            assert row["predicted_seconds"] > row["floor_seconds"]
    assert "| v2 head, batch 1 | 3 |" in found.stdout
