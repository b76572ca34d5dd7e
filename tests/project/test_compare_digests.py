"""tools/compare_digests.py sees what differs between machines."""

from __future__ import annotations

import pytest

from compare_digests import main

HERE = "avx2 normal/float32 1\navx2 uniform/float32 2\nportable normal/float32 1\n"


@pytest.mark.parametrize(
    ("here", "there", "status", "message"),
    [
        (HERE + "portable uniform/float32 2\n", "neon uniform/float32 2\nneon normal/float32 1\n",
         0, "all bits equal"),
        (HERE, "", 1, "portable (here): uniform/float32 is missing"),
        ("avx2 a 1\n", "neon a 2\n", 1, "neon (Arm): a differs"),
        ("avx2 a 1\n", "neon a 1\nneon b 1\n", 1, "avx2 (here): b is missing"),
        ("", "", 1, "there is no case"),
    ],
)  # fmt: skip
def test_status_and_message(tmp_path, capsys, here, there, status, message):
    (tmp_path / "here").write_text(here)
    (tmp_path / "arm").write_text(there)
    assert main([f"here={tmp_path / 'here'}", f"Arm={tmp_path / 'arm'}"]) == status
    assert message in capsys.readouterr().out
