"""What must not be in PTX is found, and counted."""

from __future__ import annotations

import pytest
from lint_ptx import fault_of, lint

KERNEL = """
.visible .entry kernel(.param .u64 there)
.maxntid 32, 1, 1
{
\t.reg .f32 %f<4>;
\tadd.rn.f32 %f1, %f2, %f3; // mul.ftz.f32 in a comment
\t@%p1 mul.f32 %f1, %f2, %f3;
\t@!%p1 bra $L__BB0_1;
$L__BB0_1:
\t{ .reg .b32 tmp; mov.b64 {tmp, %r81}, %rd46; }
\tret;
}
"""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("add.rn.f32", ""),
        ("fma.rn.f64", ""),
        ("add.s32", ""),
        ("mul.wide.u32", ""),
        ("max.f32", ""),
        ("cvt.rn.bf16x2.f32", ""),
        ("add.f32", "has no .rn"),
        ("mul.f64", "has no .rn"),
        ("fma.rz.f32", "has no .rn"),
        ("div.full.f32", "is an approximation"),
        ("rsqrt.approx.f32", "is an approximation"),
        ("add.rn.ftz.f32", "takes subnormals for zeros"),
        ("rsqrt.approx.ftz.f32", "takes subnormals for zeros"),
    ],
)
def test_instructions_that_must_not_be_are_known(name: str, fault: str) -> None:
    assert fault_of(name) == fault


def test_an_exception_is_by_name() -> None:
    allowed = {"rsqrt.approx.ftz.f32": "a first guess, which a step makes right"}
    assert fault_of("rsqrt.approx.ftz.f32", allowed) == ""
    assert fault_of("rcp.approx.ftz.f32", allowed) != ""
    assert fault_of("rcp.approx.ftz.f32") == ""
    assert fault_of("rcp.approx.ftz.f64") != ""


def test_a_text_is_counted() -> None:
    found = lint(KERNEL)
    assert found.kernels == 1
    assert found.rounded == 2
    assert found.wrong == {"mul.f32": "mul.f32 (1 times) has no .rn"}
    counted = {"add.rn.f32": 1, "mul.f32": 1, "bra": 1, "mov.b64": 1, "ret": 1}
    assert found.instructions == counted
