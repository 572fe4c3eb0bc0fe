import pytest

from slurm import probe as probing
from slurm.cost import CostModel, Estimate, Work, job_seconds
from slurm.limits import ClusterLimits, array_tasks, free_slots, read_limits, split
from slurm.profile import Limits
from slurm.profile_file import parse_profile


@pytest.mark.parametrize(
    ("cluster", "tasks"),
    [
        (ClusterLimits(), 500),
        (ClusterLimits(max_array_size=1001), 500),
        (ClusterLimits(max_array_size=51), 51),
        (ClusterLimits(max_submit=20), 20),
        (ClusterLimits(max_array_size=1), 1),
    ],
)
def test_an_array_is_as_long_as_everybody_allows(cluster, tasks):
    assert array_tasks(Limits(), cluster) == tasks


@pytest.mark.parametrize(
    ("max_queued", "max_submit", "queued", "slots"),
    [(0, None, 7, None), (10, None, 7, 3), (0, 10, 7, 2), (5, 100, 7, 0), (100, 10, 0, 9)],
)
def test_a_slot_stays_free_for_the_job_that_aggregates(max_queued, max_submit, queued, slots):
    limits = Limits(max_queued=max_queued)
    assert free_slots(limits, ClusterLimits(max_submit=max_submit), queued) == slots


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (1003, 500), (7, 1)])
def test_split_keeps_order_and_makes_as_few_even_pieces_as_can_be(count, most):
    pieces = split(range(count), most)
    assert [item for piece in pieces for item in piece] == list(range(count))
    assert len(pieces) == -(-count // most)
    lengths = [len(piece) for piece in pieces]
    assert not lengths or max(lengths) - min(lengths) <= 1


WORK = Work("m", "float32", "cpu", "magnitude", "csr", 2, 100_000_000, 20_480, 0)
ROW = {
    "model": "m", "dtype": "float32", "device": "cpu", "method": "magnitude", "variant": "csr",
    "load_s": 2.0, "dense_s": 8.0, "prune_s": 1.0, "encode_s": 1.0, "evaluate_s": 19.0,
    "evaluation_tokens": 20_480,
}  # fmt: skip


def test_earlier_runs_are_believed_and_scaled_by_tokens():
    model = CostModel([ROW])
    assert model.estimate(WORK) == Estimate(walk_s=10.0, prune_s=1.0, cell_s=20.0, measured=True)
    half = Work("m", "float32", "cpu", "magnitude", "csr", 2, 100_000_000, 10_240, 0)
    assert model.estimate(half).cell_s == 10.0


def test_the_dense_stream_is_not_paid_twice():
    dense = {**ROW, "variant": "dense", "method": "none", "prune_s": 0.0, "encode_s": 0.0, "evaluate_s": 8.0}
    estimate = CostModel([dense]).estimate(Work("m", "float32", "cpu", "none", "dense", 2, 100_000_000, 20_480, 0))
    assert estimate == Estimate(walk_s=10.0, prune_s=0.0, cell_s=0.0, measured=True)


@pytest.mark.parametrize("other", [{"model": "n"}, {"variant": "masked"}, {"method": "wanda"}, {"dtype": "float16"}])
def test_other_models_are_estimated_by_size(other):
    assert not CostModel([{**ROW, **other}]).estimate(WORK).measured


def test_by_size_more_work_takes_longer():
    model = CostModel()
    small = model.estimate(WORK)
    assert (
        model.estimate(Work("m", "float32", "cpu", "magnitude", "csr", 2, 200_000_000, 20_480, 0)).cell_s > small.cell_s
    )
    assert (
        model.estimate(Work("m", "float32", "cpu", "magnitude", "masked", 2, 100_000_000, 20_480, 0)).cell_s
        < small.cell_s
    )
    assert (
        model.estimate(Work("m", "float32", "cpu", "sparsegpt", "csr", 2, 100_000_000, 20_480, 999)).prune_s
        > small.prune_s
    )
    assert (
        model.estimate(Work("m", "float32", "cuda", "magnitude", "csr", 2, 100_000_000, 20_480, 0)).cell_s
        < small.cell_s
    )
    assert model.estimate(Work("m", "float32", "cpu", "none", "dense", 2, 100_000_000, 20_480, 0)).cell_s == 0


def test_neighbours_share_the_walk_and_the_pruning():
    one = Estimate(walk_s=10.0, prune_s=5.0, cell_s=1.0, measured=True)
    alone = job_seconds([("p", one)])
    assert job_seconds([("p", one), ("p", one)]) == alone + 1.0
    assert job_seconds([("p", one), ("q", one)]) == alone + 6.0


SINFO = """\
cpu*|up|2-00:00:00|100|64|257000|(null)|zen4,ib|2:32:2
cpu*|up|2-00:00:00|10|32+|128000+|(null)|zen3|2:16+:1
gpu|up|1-00:00:00|8|64|515000|gpu:a100:4(S:0-1)|a100|2:32:1
gpu|up|1-00:00:00|2|64|515000|gpu:h100:8|h100|2+:16:2
old|down|infinite|1|8|16000|gpu:1|(null)|8:1:1
"""
CONFIG = """\
ClusterName             = hal
MaxArraySize            = 1001
SLURM_VERSION           = 24.05.1
AccountingStorageType   = accounting_storage/slurmdbd
"""


PARTITIONS = """\
PartitionName=cpu AllowAccounts=ALL AllowQos=ALL Default=YES QoS=part-cpu MaxNodes=4 MaxMemPerNode=100000 TRES=cpu=1
PartitionName=gpu AllowAccounts=mine,other AllowQos=normal Default=NO QoS=N/A MaxNodes=UNLIMITED MaxMemPerCPU=2048
PartitionName=vip AllowAccounts=rich AllowQos=ALL Default=NO QoS=part-vip MaxNodes=1 MaxMemPerNode=UNLIMITED
"""
#: Default account, account, partition, default QOS, MaxSubmitJobs, GrpSubmitJobs.
USER = """\
mine|abc||long|5|
mine|mine||normal|200|
mine|mine|vip|normal|3|
mine|thrifty||||900
"""
#: Name, jobs a user, jobs an account, jobs in all.
QOS = "normal|150||\nlong|7||\npart-cpu|||120\npart-vip|2||\nfree|||\n"


def answers(command):
    if command[0] == "scontrol":
        return PARTITIONS if command[-1] == "partition" else CONFIG
    if command[0] == "sinfo":
        return SINFO
    if "withassoc" in command:
        return USER
    if "qos" in command:
        return QOS
    return "mine\n" if "DefaultAccount" in command[-1] else "abc|normal,long\nmine|normal\n"


@pytest.mark.parametrize(
    ("job", "limit"),
    [
        ("", 120),  # the default account 200, its QOS 150, the default partition's QOS 120
        ("partition = 'gpu'", 150),
        ("partition = 'vip'", 2),
        ("partition = 'gpu'\naccount = 'abc'", 5),
        ("partition = 'gpu'\naccount = 'abc'\nqos = 'long'", 5),
        ("partition = 'gpu'\nqos = 'long'", 7),
        ("partition = 'gpu'\nqos = 'free'", 200),
        ("partition = 'gpu'\naccount = 'thrifty'\nqos = 'free'", 900),
        ("partition = 'gpu'\naccount = 'thrifty'", 150),  # an association without a default QOS
        ("partition = 'gpu'\n[class.gpu]\nqos = 'long'", 7),
        ("partition = 'gpu,vip'", 2),
    ],
)
def test_jobs_in_the_queue_are_bounded_by_what_the_profile_uses_and_by_nothing_else(job, limit):
    profile = parse_profile(f"[job]\n{job}", name="x", where="x")
    assert read_limits(profile, answers) == ClusterLimits(max_array_size=1001, max_submit=limit)


def test_without_accounting_or_an_answer_no_limit_is_known():
    asked = []
    profile = parse_profile("[limits]\naccounting = false", name="x", where="x")
    assert read_limits(profile, lambda command: asked.append(command[0]) or CONFIG).max_submit is None
    assert asked == ["scontrol"]
    assert read_limits(parse_profile("", name="x", where="x"), lambda command: None) == ClusterLimits()


def test_a_probe_heeds_who_may_use_a_partition_and_how_much():
    cluster = probing.probe(answers, {})
    parts = {part.name: part for part in cluster.partitions}
    assert (parts["cpu"].memory_gib, parts["cpu"].max_nodes) == (100000 / 1024, 4)
    assert parts["gpu"].memory_gib == 64 * 2048 / 1024, "memory a core times the cores of a node"
    assert (parts["gpu"].accounts, parts["gpu"].qos) == (("mine", "other"), ("normal",))
    text = probing.profile_text(cluster, "t")
    assert "at most 4 nodes a job" in text
    assert "only account mine other, only qos normal" in text
    closed = PARTITIONS.replace("mine,other", "rich")
    other = probing.probe(lambda command: closed if command[-1] == "partition" else answers(command), {})
    assert set(parse_profile(probing.profile_text(other, "t"), name="x", where="x").classes) == {"cpu"}


def test_a_probed_profile_is_sound_and_says_what_there_is():
    cluster = probing.probe(answers, {"SCRATCH": "/scratch/me"})
    text = probing.profile_text(cluster, "2026-01-01")
    profile = parse_profile(text, name="hal", where="hal.toml")
    assert profile.limits.max_array_tasks == 500
    assert profile.limits.max_minutes == 1440
    assert profile.limits.accounting
    assert profile.job.account == "mine"
    assert {name: job.partition for name, job in profile.classes.items()} == {"cpu": "cpu", "gpu": "gpu"}
    assert "a100, h100" in text
    assert "$SCRATCH" in text
    assert "/scratch/me" not in text
    assert "old: 1 nodes, 8 cores, 16 GiB, 1 GPUs, no time limit, down" in text


def test_a_probe_says_where_a_cpu_is_half_a_core():
    cluster = probing.probe(answers, {})
    assert {part.name: part.threads_per_core for part in cluster.partitions} == {"cpu": 1, "gpu": 2, "old": 1}
    text = probing.profile_text(cluster, "t")
    assert "gpu: 10 nodes, 64 CPUs, 2 threads a core, " in text
    assert "cpu*: 110 nodes, 32 cores, " in text
    wished = text.replace('# extra = { hint = "nomultithread" }', 'extra = { hint = "nomultithread" }')
    classes = parse_profile(wished, name="x", where="x").classes
    assert {name: job.extra for name, job in classes.items()} == {"cpu": {}, "gpu": {"hint": "nomultithread"}}


def test_hostile_names_of_a_cluster_do_not_leave_their_place():
    cluster = probing.Cluster(
        name='x"\n[job]\npartition="y', version="1", partitions=(), max_array_size=None, accounting=False
    )
    assert parse_profile(probing.profile_text(cluster, "t"), name="x", where="x").job.partition == ""


def test_no_slurm_is_one_clear_error():
    with pytest.raises(Exception, match="no Slurm answers"):
        probing.probe(lambda command: None)
