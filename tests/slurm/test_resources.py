import pytest

from slurm.resources import Resources, problems
from sparsehpc.core.errors import UserErrors


def test_a_sound_table_becomes_a_class():
    found = Resources.from_table("gpu", {"cpus": 4, "memory_gib": 7.5, "minutes": 45, "gpus": 1})
    assert found == Resources(name="gpu", cpus=4, memory_gib=7.5, minutes=45, gpus=1)
    assert (found.device, found.memory_mib) == ("cuda", 7680)


def test_no_gpus_means_cpu_whatever_the_machine_has():
    assert Resources().device == "cpu"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"cpus": 0}, "resources.a.cpus is 0"),
        ({"cpus": True}, "resources.a.cpus is True"),
        ({"cpus": "2"}, "resources.a.cpus is '2'"),
        ({"cpus": 1.5}, "resources.a.cpus is 1.5"),
        ({"memory_gib": 0}, "resources.a.memory_gib is 0"),
        ({"memory_gib": float("nan")}, "resources.a.memory_gib is nan"),
        ({"memory_gib": 8_589_934_592}, "resources.a.memory_gib is 8589934592"),
        ({"minutes": -5}, "resources.a.minutes is -5"),
        ({"gpus": -1}, "resources.a.gpus is -1"),
        ({"memory": 8}, "did you mean 'memory_gib'?"),
        ("8 GiB", "legal: a table of"),
    ],
)
def test_each_problem_names_the_key_and_the_value(table, words):
    assert words in "\n".join(problems("a", table))


def test_all_problems_come_at_once():
    with pytest.raises(UserErrors) as caught:
        Resources.from_table("a", {"cpus": 0, "minutes": "x", "gpu": 1})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n#SBATCH", "x" * 40])
def test_a_class_name_is_a_plain_word(name):
    assert "not a legal name" in problems(name, {})[0]
