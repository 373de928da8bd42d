"""What JAX recognises, by the variables that schedulers set."""

import sys

import pytest

from rankclip_jax.config import DistributedConfig
from rankclip_jax.processes import cluster
from rankclip_jax.processes.cluster import Place

SLURM = {
  "SLURM_JOB_ID": "5000",
  "SLURM_STEP_NODELIST": "node[07-08]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
AUTO = DistributedConfig(mode="auto")
EXPLICIT = DistributedConfig(
  mode="explicit", coordinator="a:1", num_processes=2, process_id=1
)


@pytest.fixture(autouse=True)
def variables(monkeypatch):
  """Sets variables of a scheduler, of which none is set before."""
  others = (*SLURM, *OPEN_MPI, "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
  mine = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "JAX_LOCAL_DEVICE_IDS")
  for name in (*others, *mine):
    monkeypatch.delenv(name, raising=False)
  return lambda names: [monkeypatch.setenv(k, v) for k, v in names.items()]


def test_a_lone_machine():
  assert cluster.find(AUTO) is None
  assert cluster.find(DistributedConfig()) is None
  cluster.check_alone()


def test_slurm(variables):
  variables(SLURM)
  port = 5000 % 2**12 + 65536 - 2**12
  assert cluster.find(AUTO) == Place("SLURM", f"node07:{port}", 4, 3, (1,))
  variables({"JAX_COORDINATOR_PORT": "1234", "JAX_LOCAL_DEVICE_IDS": "0,1"})
  assert cluster.find(AUTO) == Place("SLURM", "node07:1234", 4, 3, (0, 1))


def test_open_mpi(variables):
  variables(OPEN_MPI)
  found = cluster.find(AUTO)
  assert found
  assert (found.cluster, found.count, found.index) == ("Open MPI", 2, 1)
  assert found.coordinator.startswith("10.96.0.1:")


def test_explicit_needs_no_cluster(variables):
  assert cluster.find(EXPLICIT) == Place("the config", "a:1", 2, 1, None)
  variables(SLURM)  # of which it takes the GPU of each process, as JAX does
  assert cluster.find(EXPLICIT) == Place("the config", "a:1", 2, 1, (1,))


def test_an_index_beyond_the_number_of_processes(variables):
  variables({**SLURM, "SLURM_PROCID": "4"})
  with pytest.raises(ValueError, match="Process 4 of 4 cannot be: .* from 0 to 3"):
    cluster.find(AUTO)


def test_a_cluster_that_does_not_say_what_is_needed(variables):
  variables({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "two"})
  with pytest.raises(ValueError, match=r"Open MPI was asked .* failed \(ValueError"):
    cluster.find(AUTO)


def test_tasks_of_slurm_without_srun(variables):
  variables({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"})
  with pytest.raises(ValueError, match="8 tasks .* not started by srun"):
    cluster.find(AUTO)
  variables({"SLURM_NTASKS": "1"})
  assert cluster.find(AUTO) is None


def test_a_launcher_that_jax_does_not_know(variables):
  variables({"OMPI_COMM_WORLD_SIZE": "2"})  # of Open MPI 5, the half of what it sets
  with pytest.raises(ValueError, match="Open MPI started 2 processes .* not recognise"):
    cluster.find(AUTO)


def test_a_pod_of_kubernetes_without_its_package(variables, monkeypatch):
  monkeypatch.setitem(sys.modules, "kubernetes", None)
  variables({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"})
  with pytest.raises(ValueError, match=r"pip install 'jax\[k8s\]'"):  # and no warning
    cluster.find(AUTO)
  assert cluster.find(EXPLICIT) == Place("the config", "a:1", 2, 1, None)


@pytest.mark.parametrize("names", [SLURM, OPEN_MPI])
def test_one_of_several_tasks_may_not_train_alone(variables, names):
  variables(names)
  with pytest.raises(
    ValueError, match=r"started \d processes, .* each would train alone"
  ):
    cluster.check_alone()


def test_devices_that_are_no_numbers_are_named(variables):
  variables({**SLURM, "JAX_LOCAL_DEVICE_IDS": "a,b"})
  with pytest.raises(ValueError, match="JAX_LOCAL_DEVICE_IDS='a,b' must be numbers"):
    cluster.find(AUTO)
