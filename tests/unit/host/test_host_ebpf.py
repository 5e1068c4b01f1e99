"""The assembler's encoding, against instructions of the kernel's documentation."""

from __future__ import annotations

import pytest

from bench.host import ebpf
from bench.host.ebpf import JNE, R0, R1, R10, WORD, Assembler
from bench.link.blackout import program


def test_instructions_are_encoded_as_the_kernel_reads_them():
    code = Assembler()
    code.set(R0, 2)
    code.load(WORD, R1, R10, -8)
    code.exit()
    assert code.assemble().hex(" ", 8) == "b700000002000000 61a1f8ff00000000 9500000000000000"


def test_jumps_count_from_the_next_instruction():
    code = Assembler()
    code.jump_if(JNE, R0, 0, "end")
    code.set(R0, 1)
    code.label("end")
    code.exit()
    assert code.assemble()[:8].hex() == "5500010000000000"


def test_a_jump_to_nowhere_is_an_error():
    code = Assembler()
    code.jump("nowhere")
    with pytest.raises(KeyError):
        code.assemble()


def test_both_sides_programs_are_whole_and_differ_in_where_they_look():
    source, destination = (program(3, side) for side in ("source", "destination"))
    assert len(source) == len(destination)
    assert len(source) % 8 == 0
    differing = [at for at in range(0, len(source), 8) if source[at : at + 8] != destination[at : at + 8]]
    assert len(differing) == 1
    assert ebpf.R10 == 10
