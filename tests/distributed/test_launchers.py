"""The processes of srun are numbered as torchrun would number them; those of MPI are refused with the command."""

from __future__ import annotations

import pytest

from sb3_ppo_ext.distributed import group
from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.launchers import as_torchrun

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_tasks_of_a_step_have_torchruns_variables() -> None:
    # The port is 20000 + (1234 * 16 + 1) % 10000.
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "29745"}
    assert as_torchrun(STEP) == expected
    own = as_torchrun({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert (own["MASTER_ADDR"], own["MASTER_PORT"]) == ("10.0.0.7", "29500")
    assert as_torchrun({**STEP, "SLURM_STEP_NUM_NODES": "1"})["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1,b2", "a1"), ("login", "login"), ("gpu[012,014-020],cpu3", "gpu012"), ("n[1-2]-ib", "n1-ib")],
)
def test_the_first_machine_is_read_from_slurms_list(nodes: str, first: str) -> None:
    assert as_torchrun({**STEP, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize("nodes", ["", "r[1-2]n[1-8]"])
def test_a_list_that_cannot_be_read_is_refused_with_the_command(nodes: str) -> None:
    with pytest.raises(ValueError, match=r"SLURM_STEP_NODELIST=.*MASTER_ADDR.*srun --ntasks-per-node=1 torchrun"):
        as_torchrun({**STEP, "SLURM_STEP_NODELIST": nodes})


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {**STEP, "WORLD_SIZE": "2"},  # torchrun under srun
        {**STEP, "WORLD_SIZE": "1"},  # runs that have nothing to do with each other
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, outside of any step
        {**STEP, "SLURM_JOB_NAME": "interactive"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_SIZE": "4", "WORLD_SIZE": "4"},
    ],
)
def test_other_processes_are_left_as_they_are(variables: dict[str, str]) -> None:
    assert as_torchrun(variables) == {}


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_of_mpi_are_refused_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=rf"{name}=2: .*torchrun --nproc-per-node 2 script.py.*WORLD_SIZE=1"):
        join_processes()


def started(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    monkeypatch.setattr(group, "MET_WITHIN", 0.5)
    monkeypatch.setattr(group, "BY_HAND_WITHIN", 0.5)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", **variables}.items():
        monkeypatch.setenv(name, value)
    join_processes()


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: a whole number is needed"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE=2, and MASTER_PORT not set: start the processes by torchrun"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: a whole number is needed"),
        ({"RANK": "2", "MASTER_PORT": "1"}, "RANK=2: WORLD_SIZE=2 processes have the ranks 0 to 1"),
        ({"RANK": "1", "MASTER_PORT": "1"}, "nothing answers .*Connection refused"),
        ({"MASTER_PORT": "0"}, "WORLD_SIZE=2: not all of the processes have come to .*1/2 clients joined"),
    ],
)
def test_variables_that_lead_nowhere_are_refused_within_seconds(
    variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=text):
        started(monkeypatch, **variables)


def test_a_process_waits_for_the_store_of_rank_0_by_how_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group._patience(launched=True) == group.STARTED_WITHIN
    assert group._patience(launched=False) == group.BY_HAND_WITHIN
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")  # torchrun, with a store of rank 0 at every start
    assert group._patience(launched=False) == group.STARTED_WITHIN
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert group._patience(launched=False) == 0
