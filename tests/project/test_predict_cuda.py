"""Instructions are counted on the hot path alone, and speeds follow from them as by hand."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

import gpu
import predict_cuda
import predicted
import sass
from predict_cuda import GPUS, predict

ROOT = Path(__file__).parents[2]

# As nvdisasm prints: a loop over chunks, in it a loop that draws, with a root that may call, and
# stores twice 16 bytes, or at an end one by one; after it one for constants.
CONTIGUOUS = """
//--------------------- .text.table_kernel  --------------------------
.text.table_kernel:
        .type           table_kernel,@function
table_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*0020*/               @P0 BRA `(.L_x_6) ;
.L_x_2:
        /*0030*/                   IMAD.WIDE.U32 R4, R2, -0x2daee0ad, RZ ;
        /*0040*/                   LOP3.LUT R5, R5, R6, R7, 0x96, !PT ;
        /*0050*/                   BSSY B0, `(.L_x_4) ;
        /*0060*/                   MUFU.RSQ R8, R5 ;
        /*0070*/              @!P1 BRA `(.L_x_3) ;
        /*0080*/                   CALL.REL.NOINC `($slowpath) ;
        /*0090*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*00a0*/                   FMUL.FTZ R9, R8, R5 ;
        /*00b0*/                   FFMA R9, R9, R9, R8 ;
        /*00c0*/                   FFMA R9, R9, R9, R8 ;
.L_x_4:
        /*00d0*/                   BSYNC B0 ;
        /*00e0*/              @!P0 STG.E.128 desc[UR6][R34.64], R16 ;
        /*00f0*/              @!P0 STG.E.128 desc[UR6][R34.64+0x1000], R20 ;
        /*0100*/              @!P0 BRA `(.L_x_5) ;
        /*0110*/              @!P2 STG.E.128 desc[UR6][R34.64], R16 ;
        /*0120*/               @P2 STG.E.U16 desc[UR6][R52.64], R55 ;
        /*0130*/              @!P2 STG.E.128 desc[UR6][R34.64+0x1000], R20 ;
.L_x_5:
        /*0140*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0150*/                   BRA.U !UP0, `(.L_x_2) ;
        /*0160*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0170*/                   BRA `(.L_x_1) ;
.L_x_6:
        /*0180*/                   STG.E.128 desc[UR6][R34.64], R16 ;
        /*0190*/              @!P6 STG.E.128 desc[UR6][R34.64+0x1000], R16 ;
        /*01a0*/              @!P6 BRA `(.L_x_6) ;
        /*01b0*/                   EXIT ;
.L_x_7:
        /*01c0*/                   BRA `(.L_x_7);
"""

# A tile's two loops: one draws four values, the other, which is unrolled twice, stores them.
TILED = """
.text.tile_kernel:
.L_x_1:
        /*0000*/                   IMAD.HI.U32 R4, R2, -0x326172a9, RZ ;
        /*0010*/                   IMAD R5, R4, R6, RZ ;
        /*0020*/               @P0 STS.U16 [R7], R8 ;
        /*0030*/                   STS.U16 [R7+0x2], R8 ;
        /*0040*/              @!P1 BRA `(.L_x_2) ;
        /*0050*/                   I2F.U32.RP R9, R10 ;
.L_x_2:
        /*0060*/                   STS.U16 [R7+0x4], R8 ;
        /*0070*/                   STS.U16 [R7+0x6], R8 ;
        /*0080*/               @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0090*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*00a0*/               @P0 BRA `(.L_x_4) ;
        /*00b0*/                   LDS.U16 R4, [R7] ;
        /*00c0*/                   IMAD.WIDE R8, R2, 0x2, R10 ;
        /*00d0*/                   STG.E.U16 desc[UR6][R8.64], R4 ;
.L_x_4:
        /*00e0*/                   ISETP.GE.AND P1, PT, R5, R3, PT ;
        /*00f0*/               @P1 BRA `(.L_x_5) ;
        /*0100*/                   LDS.U16 R4, [R7] ;
        /*0110*/                   STG.E.U16 desc[UR6][R8.64+0x80], R4 ;
.L_x_5:
        /*0120*/               @P2 BRA `(.L_x_3) ;
        /*0130*/                   EXIT ;
"""


def kernel_of(text):
    (kernel,) = sass.read_kernels(text).values()
    return kernel


def test_reading():
    kernel = kernel_of(CONTIGUOUS)
    assert len(kernel.code) == 0x1C0 // 16 + 1
    assert kernel.code[2] == sass.Instruction("BRA", "P0", "`(.L_x_6)")
    assert kernel.loops() == [(24, 26), (3, 21), (1, 23)]
    assert kernel.next(2) == [3, 24]
    assert kernel.next(21) == [22, 3]  # its predicate is an operand
    assert kernel.next(27) == []


def test_the_hot_path_of_a_contiguous_kernel():
    path = sass.packet_path(kernel_of(CONTIGUOUS), 2)
    assert [each.name for each in path] == [
        "IMAD.WIDE.U32", "LOP3.LUT", "BSSY", "MUFU.RSQ", "BRA", "FMUL.FTZ", "FFMA", "FFMA", "BSYNC",
        "STG.E.128", "STG.E.128", "BRA", "UIADD3", "BRA.U",
    ]  # fmt: skip
    assert sass.philox_products(path) == 1
    assert sass.count(path) == {
        "all": 14, "wide": 1, "alu": 1, "branch": 5, "mufu": 1, "fp32": 3, "store": 2, "uniform": 1,
    }  # fmt: skip


def test_the_end_of_a_tensor_is_not_the_hot_path():
    path = sass.packet_path(kernel_of(CONTIGUOUS), 4)
    assert "STG.E.U16" in [each.name for each in path]
    with pytest.raises(ValueError, match="makes 3 stores"):
        sass.packet_path(kernel_of(CONTIGUOUS), 3)


def test_a_kernel_that_draws_otherwise_is_refused():
    with pytest.raises(ValueError, match="no loop of table_kernel draws"):
        sass.packet_path(kernel_of(CONTIGUOUS.replace("-0x2daee0ad", "0x7")), 2)
    with pytest.raises(ValueError, match="computed address"):
        sass.packet_path(kernel_of(CONTIGUOUS.replace("BSYNC B0", "BRX R2 0x10")), 2)


def test_the_hot_paths_of_a_tiled_kernel():
    counts, stores = predict_cuda.counts_of(kernel_of(TILED), "transposed", 2)
    # 8 of 4 values without the conversion, 10 of 2.
    assert counts["all"] == 8 / 4 + 10 / 2
    assert counts["wide"] == 1 / 4 + 1 / 2
    assert counts["alu"] == 2 / 2
    assert counts["branch"] == 2 / 4 + 3 / 2
    assert "mufu" not in counts
    assert stores == "STG.E.U16"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("IMAD.MOV.U32", "imad"), ("IMAD.WIDE.U32", "wide"), ("IMAD.HI.U32", "wide"),
     ("I2FP.F32.S32", "alu"), ("I2F.U32.RP", "mufu"), ("FSETP.GT.AND", "alu"),
     ("ULOP3.LUT", "uniform"), ("STG.E.128", "store"), ("BAR.SYNC.DEFER_BLOCKING", "other"),
     ("F2FP.BF16.F32.PACK_AB", "alu")],
)  # fmt: skip
def test_kinds(name, kind):
    assert sass.Instruction(name, "", "").kind == kind


H100, H200 = GPUS


def test_speeds_by_hand():
    """132 multiprocessors at 1.755 GHz are 231.66 G a second; `zero_` writes 3.0485 TB/s."""
    # 36.9 instructions: 231.66 * 128 / 36.9 = 803.6 G values a second, of 1524 G at 2 bytes.
    counts = {"all": 36.9, "fp32": 14, "alu": 14.1, "wide": 4.3, "mufu": 0.5}
    speed = predict(counts, 2, H100)
    assert speed.bound == "issue"
    assert speed.values == pytest.approx(0.85 * 803.6, abs=0.1)
    assert speed.share_100 == pytest.approx(0.5272, abs=1e-4)
    assert speed.share_85 == pytest.approx(0.4481, abs=1e-4)
    # At 4 bytes 762.1 G: memory at 100%, 683.0 G at 85%.
    speed = predict(counts, 4, H100)
    assert (speed.bound, speed.share_100) == ("issue", 1)
    assert speed.share_85 == pytest.approx(683.0 / 762.1, abs=1e-3)
    assert predict(counts | {"all": 30}, 4, H100).bound == "memory"


def test_other_bounds():
    """Units: 9.6 of the ALU at 64, 4.3 wide products at 32 and one other at 64, MUFU at 16."""
    assert predict({"all": 15, "alu": 9.6, "wide": 4.3}, 2, H200).bound == "ALU"
    assert predict({"all": 15, "alu": 9.0, "wide": 4.3, "imad": 1.0}, 2, H200).bound == "multiply"
    speed = predict({"all": 15, "mufu": 3}, 1, H200)
    assert speed.bound == "special functions"
    assert speed.values == pytest.approx(0.85 * 231.66 * 16 / 3)
    assert speed.share_100 == pytest.approx(231.66e9 * 16 / 3 / (0.91 * 4.8e12))


def lines():
    with predict_cuda.CSV.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_file_follows_from_its_counts():
    """The predictions are those of the counts beside them, whose last digit is rounded."""
    sizes = {name: size for name, (_, size) in predict_cuda.DTYPES.items()}
    rows = [row for row in lines() if row["gpu"]]
    assert len(rows) == len(GPUS) * 2 * len(sizes) * len(predict_cuda.FILLS)
    for row in rows:
        (on,) = (each for each in GPUS if each.name == row["gpu"])
        counts = {kind: float(row[kind]) for kind in predict_cuda.COUNTED}
        speed = predict(counts, sizes[row["dtype"]], on)
        assert float(row["share_85"]) == pytest.approx(speed.share_85, abs=2e-3), row
        assert row["bound"] == speed.bound


def test_contiguous_fills_store_16_bytes_to_global_memory():
    assert {row["stores"] for row in lines() if row["layout"] == "contiguous"} == {"STG.E.128"}


def test_the_page_has_the_table_of_the_file():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert predict_cuda.put_into(page, predict_cuda.table(lines())) == page
    with pytest.raises(ValueError, match="no marks"):
        predict_cuda.put_into(page.replace("<!-- predicted -->", ""), "")


# Measured beside predicted, with made-up measurements.


def made_up(share):
    """A row of bfloat16 normals at a part of `zero_`'s speed."""
    times = {"zero": [share * 1e-3] * 3, "ours": [1e-3] * 3}
    predictions = predicted.read_predictions("H100")
    assert predictions["bfloat16 normal"].share == pytest.approx(0.45, abs=0.01)
    return gpu.row("bfloat16 normal", times, 2**31, "", predictions)


def test_a_row_far_below_its_prediction_is_marked():
    """Predicted are 0.45 of `zero_`: 0.37 is enough, 0.35 is not."""
    fine, poor = made_up(0.37), made_up(0.35)
    assert (fine.is_predicted, fine.is_finding) == (True, False)
    assert (poor.is_predicted, poor.is_finding) == (True, True)
    assert fine.cells[4] == "0.45 (issue)"
    assert re.fullmatch(r"0\.45 \(issue\), \*\*only 0\.7\d of it\*\*", poor.cells[4])


def test_other_gpus_have_no_prediction():
    assert predicted.read_predictions("") == {}
    assert "NVIDIA H100 PCIe" not in predicted.DEVICES
    line = gpu.row("bfloat16 normal", {"zero": [1e-9], "ours": [1.0]}, 2**31, "", {})
    assert line.cells[4] == ""
    assert (line.is_predicted, line.is_finding) == (False, False)


# The program that tries divisions and roots on a GPU, on the host.


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory):
    program = tmp_path_factory.mktemp("arithmetic") / "arithmetic"
    flags = re.findall(r"^cxx (.*)$", (ROOT / "csrc" / "flags.txt").read_text(), re.M)
    source = ROOT / "tests" / "native" / "device_arithmetic.cu"
    subprocess.run(["c++", *flags, "-O1", "-x", "c++", source, "-o", program], check=True)

    def run(*words):
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True)

    return run


def test_every_argument_is_right_by_good_approximations(arithmetic):
    done = arithmetic(1009, 0)
    assert done.returncode == 0
    assert "all correctly rounded; the root by a reciprocal could be used" in done.stdout
    assert re.search(r"root: 16\d\d\d arguments, 0 wrong", done.stdout)


def test_wrong_roots_and_quotients_are_counted(arithmetic):
    done = arithmetic(1009, 40)  # units in the last place
    assert "the root by a reciprocal must not be used" in done.stdout
    done = arithmetic(1009, 1_000_000)
    assert done.returncode == 1
    assert re.search(r"quotient within 2 std: \d+ arguments, [1-9]\d* wrong", done.stdout)
