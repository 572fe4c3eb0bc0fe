import pytest

from slurm import profile_file as profiles
from slurm.profile_file import load_profile, parse_profile
from slurm.resources import Resources
from sparsehpc.core.errors import UserError, UserErrors


def parse(text):
    return parse_profile(text, name="x", where="x.toml")


@pytest.mark.parametrize("path", sorted(profiles.SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_sound_and_say_what_they_are(path):
    assert load_profile(path.stem).description


def test_a_class_overrides_by_device_then_by_name():
    profile = parse(
        '[job]\npartition="all"\naccount="a"\n[class.gpu]\npartition="gpu"\n[class.big]\naccount="b"\nrequeue=false\n'
    )
    assert profile.job_for(Resources(name="cpu")).partition == "all"
    big = profile.job_for(Resources(name="big", gpus=2))
    assert (big.partition, big.account, big.requeue) == ("gpu", "b", False)


def test_the_tables_cpu_and_gpu_go_by_what_is_asked_for_not_by_the_name():
    profile = parse('[class.cpu]\npartition="cpu"\n[class.gpu]\npartition="gpu"\n')
    assert profile.job_for(Resources(name="cpu", gpus=1)).partition == "gpu"
    assert profile.job_for(Resources(name="gpu")).partition == "cpu"


def test_the_users_own_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "sparsehpc" / "profiles" / "generic-cpu.toml"
    own.parent.mkdir(parents=True)
    own.write_text('description = "mine"\n')
    assert load_profile("generic-cpu").description == "mine"


def test_an_unknown_profile_says_which_there_are():
    with pytest.raises(UserError, match=r"did you mean 'generic-cpu'\?.*Legal: .*testbed"):
        load_profile("genric-cpu")


def test_a_missing_file_and_bad_toml_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="is not TOML"):
        parse("[job\n")


INJECTIONS = [
    ('[job]\npartition = "a\\n#SBATCH --uid=0"', "job.partition"),
    ('[job]\naccount = "a b"', "job.account"),
    ('[job]\nconstraint = "a;rm"', "job.constraint"),
    ('[job]\nexclude = "$(id)"', "job.exclude"),
    ('[job]\nmail_user = "a@b --wrap=x"', "job.mail_user"),
    ('[job]\nreservation = "r\\r"', "job.reservation"),
    ('[job]\nqos = "q`id`"', "job.qos"),
    ('[job]\nexport = "ALL;id"', "job.export"),
    ('[job]\nsetup = ["module load a\\n#SBATCH --x"]', "job.setup.0"),
    ('[job]\nsetup = ["  #SBATCH --partition=x"]', "job.setup.0"),
    ('[job]\npython = "python; id"', "job.python"),
    ('[job]\nwrapper = ["apptainer", "exec", "$(id)"]', "job.wrapper.2"),
    ('[job]\nsrun_args = ["--mpi=none\\" id"]', "job.srun_args.0"),
    ('[job.extra]\n"tmp=1 --uid" = 0', "job.extra"),
    ('[job.extra]\nlicenses = "a\\n#SBATCH --x"', "job.extra.licenses"),
    ('[job.extra]\noutput = "/etc/passwd"', "job.extra.output"),
    ('[job.environment]\n"A;id" = "x"', "job.environment"),
    ('[job.environment]\nA = "x\\ny"', "job.environment.A"),
    ('[class."a b"]\n', "class.a b"),
    ('name = "../../x y"', "name"),
]


@pytest.mark.parametrize(("text", "where"), INJECTIONS, ids=[text[:40] for text, _ in INJECTIONS])
def test_nothing_that_a_shell_or_sbatch_could_misread_passes(text, where):
    with pytest.raises(UserErrors) as caught:
        parse(text)
    assert any(problem.startswith(where) for problem in caught.value.problems)


def test_all_problems_come_at_once_with_near_names_and_legal_values():
    with pytest.raises(UserErrors) as caught:
        parse(
            '[limits]\nmax_qeued=1\nmax_array_tasks=1000\n[job]\nmemory_by="memory"\nunset=["wckey","bar"]\nsrun="yes"\n'
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "did you mean 'max_queued'?" in text
    assert "'mem-per-cpu'" in text
    assert "gpus-per-task" in text
