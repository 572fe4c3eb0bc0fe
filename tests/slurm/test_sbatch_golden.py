"""The exact script of every shipped profile, frozen."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from slurm import profile_file as profiles
from slurm.profile import DIRECTIVES
from slurm.profile_file import load_profile, parse_profile
from slurm.resources import Resources
from slurm.sbatch import check_folder, job_name, sbatch_text
from slurm.script import aggregate_script, hand_script
from sparsehpc.core.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "sbatch"
CLASSES = [
    Resources(name="cpu", cpus=2, memory_gib=8, minutes=30),
    Resources(name="gpu", cpus=4, memory_gib=7.5, minutes=90, gpus=1),
]
CELL = "0123456789abcdef0123"
PYTHON = "/opt/env/bin/python"


def compare(name, text):
    path = GOLDEN / name
    if os.environ.get("ACCEPT_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path} is missing; ACCEPT_GOLDEN=1 pytest {__file__} writes it"
    assert text == path.read_text(), (
        f"the script {name} changed. If that is meant, accept it with\n"
        f"  ACCEPT_GOLDEN=1 pytest {__file__}\nand look at `git diff {path}` before you commit."
    )


@pytest.mark.parametrize("resources", CLASSES, ids=lambda item: item.name)
@pytest.mark.parametrize("name", [path.stem for path in sorted(profiles.SHIPPED.glob("*.toml"))])
def test_array_script(name, resources):
    text = sbatch_text(
        load_profile(str(profiles.SHIPPED / f"{name}.toml")),
        resources, Path("/runs/study/submissions/0a"), 40, "study-0a",
        python=PYTHON, environment={"SPARSEHPC_HOME": "/shared/models"},
    )  # fmt: skip
    compare(f"{name}-{resources.name}.sh", text)


def test_hand_script():
    profile = load_profile(str(profiles.SHIPPED / "generic-cpu.toml"))
    compare("hand.sh", hand_script(Path("/runs/study"), CELL, CLASSES[0], profile, python=PYTHON, environment={}))


def test_script_that_aggregates():
    text = aggregate_script(
        Path("/runs/study"), "study-0b", Path("/runs/study/submissions/0b"), ["7", "12"], CLASSES[0],
        load_profile(str(profiles.SHIPPED / "generic-cpu.toml")), python=PYTHON, environment={},
    )  # fmt: skip
    assert "#SBATCH --dependency=afterany:7:12\n" in text
    compare("aggregate.sh", text)


def directives(text):
    return re.findall(r"^#SBATCH (--\S+)", text, re.MULTILINE)


def render(job, resources=CLASSES[1], folder=Path("/r/s")):
    profile = parse_profile(job, name="x", where="x")
    return sbatch_text(profile, resources, folder, 3, "n", python=PYTHON, environment={})


def test_every_directive_can_be_unset():
    everything = list(DIRECTIVES)
    assert directives(render(f"[job]\naccount='a'\nunset={everything}")) == []


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("partition='long,fat'", "--partition=long,fat"),
        ("account='my-project'", "--account=my-project"),
        ("qos='high'", "--qos=high"),
        ("constraint='zen4&ib'", "--constraint='zen4&ib'"),  # sbatch takes quotes off as a shell does
        ("exclude='n[01-03],n07'", "--exclude='n[01-03],n07'"),
        ("nodelist='n09'", "--nodelist=n09"),
        ("reservation='course'", "--reservation=course"),
        ("mail_user='a.b@example.org'", "--mail-user=a.b@example.org"),
        ("mail_type='END,FAIL'", "--mail-type=END,FAIL"),
        ("requeue=false", "--no-requeue"),
        ("signal_delay_s=300", "--signal=USR2@300"),
        ("export='NONE'", "--export=NONE"),
        ("array_parallelism=2", "--array=0-2%2"),
        ("extra={tmp='10G'}", "--tmp=10G"),
        ("extra={contiguous=true}", "--contiguous"),
    ],
)
def test_what_a_profile_names_is_asked_for_once_and_nothing_else_changes(job, line):
    plain, found = directives(render("")), directives(render(f"[job]\n{job}"))
    assert found.count(line) == 1
    key = line.partition("=")[0].replace("--no-", "--")
    others = [option for option in plain if option.partition("=")[0] != key]
    assert [option for option in found if option != line] == others
    words = parse_profile(f"[job]\n{job}", name="x", where="x").excluding("n99")
    script = sbatch_text(words, CLASSES[1], Path("/r/s"), 3, "n", python=PYTHON, environment={})
    assert [option for option in directives(script) if option.startswith("--exclude")] == [
        "--exclude='n[01-03],n07,n99'" if "exclude" in job else "--exclude=n99"
    ]


def test_copies_of_weights_on_the_node_are_asked_for_by_the_profile_alone():
    line = "export SPARSEHPC_STAGE=1"
    assert line in render("[job]\nstage_weights = true").splitlines()
    assert "STAGE" not in render("") + render("[job]\nstage_weights = true\n[class.gpu]\nstage_weights = false")


def test_wckey_is_never_asked_for_unless_wished():
    assert "--wckey" not in render("")
    assert "#SBATCH --wckey=mine" in render("[job.extra]\nwckey='mine'")


@pytest.mark.parametrize(
    ("style", "line"),
    [
        ("gres", "--gres=gpu:a100:1"),
        ("gpus-per-node", "--gpus-per-node=a100:1"),
        ("gpus-per-task", "--gpus-per-task=a100:1"),
    ],
)
def test_gpu_styles(style, line):
    assert line in directives(render(f"[job]\ngpus_by='{style}'\ngpu_type='a100'"))
    assert not [option for option in directives(render("[job]\ngpus_by='none'")) if "gpu" in option or "gres" in option]


def test_memory_styles():
    assert "--mem=7680M" in directives(render(""))
    assert "--mem-per-cpu=1920M" in directives(render("[job]\nmemory_by='mem-per-cpu'"))
    assert not [option for option in directives(render("[job]\nmemory_by='none'")) if option.startswith("--mem")]


def test_without_srun_the_program_gets_the_signal_itself():
    text = render("[job]\nsrun=false")
    assert "--signal=B:USR2@90" in directives(text)
    assert text.splitlines()[-1].startswith("exec sh -c ")


def test_only_the_cell_is_wrapped():
    text = render("[job]\nwrapper=['apptainer','exec','$IMAGE']\npython='python3'\nsetup=['module load apptainer']")
    assert text.splitlines()[-1].endswith('apptainer exec "$IMAGE" python3 -u -m slurm.task /r/s')


@pytest.mark.parametrize("name", ["a\n#SBATCH --uid=0", "$(touch x)", "../../x", "", "é" * 80])
def test_a_name_cannot_become_another_directive(name):
    clean = job_name(name)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", clean)


@pytest.mark.parametrize("folder", ["/a/%j", "/a\\b", "/a\nb"])
def test_folders_that_slurm_would_read_otherwise_are_refused(folder):
    with pytest.raises(UserError, match="cannot be used"):
        check_folder(Path(folder))


def test_odd_but_legal_folders_are_quoted(tmp_path):
    text = render("[job]\nsrun=false\nunset=['export']", folder=Path("/tmp/it's $HOME; echo"))
    script = tmp_path / "s.sh"
    script.write_text(text.replace(PYTHON, "printf '%s\\n'"))
    out = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "/tmp/it's $HOME; echo"


@pytest.mark.parametrize("name", [path.stem for path in sorted(profiles.SHIPPED.glob("*.toml"))])
def test_scripts_are_sound_shell(name, tmp_path):
    script = tmp_path / "s.sh"
    script.write_text(sbatch_text(load_profile(name), CLASSES[0], Path("/r"), 2, "n"))
    subprocess.run(["bash", "-n", str(script)], check=True)
