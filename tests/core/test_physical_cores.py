"""Cores behind logical CPUs, as the kernel describes them."""

import os

from sparsehpc.core.machine import physical_cores
from sparsehpc.core.provenance import machine


def describe(root, siblings):
    for cpu, text in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")


def test_threads_of_one_core_count_once(tmp_path):
    describe(tmp_path, {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2"})
    assert physical_cores([0, 4, 1, 5, 2], tmp_path) == 3
    assert physical_cores([0, 1, 2], tmp_path) == 3, "one thread each"
    assert physical_cores([0, 4], tmp_path) == 1


def test_what_the_kernel_does_not_describe_is_a_core(tmp_path):
    assert physical_cores([0, 1], tmp_path) == 2


def test_this_machine_has_at_least_one_and_at_most_as_many_as_cpus():
    found = machine()
    assert 1 <= found["physical_cores"] <= found["cores_usable"] == len(os.sched_getaffinity(0))
