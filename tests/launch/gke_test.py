"""Manifests against Kubernetes' own schema (kubernetes-validate, no cluster asked).

JobSet's schema is in no package. What its v1alpha2 API says of the fields that we use is
written down here; the Job inside is checked as Kubernetes checks a Job.
"""

import json
import pathlib
import re
import shutil

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
GKE = {"NAME": "run1", "IMAGE": "rankclip:1", "CLAIM": "shared"}
FLAGS = ["--config=configs/cc3m.py:vit_b32,rankclip", "--config.data.train=a: {0..3} # b"]
KUBERNETES = "1.33"


def closed(required: list[str], **properties) -> dict:
  """An object that has these properties only."""
  return {
    "type": "object",
    "required": required,
    "additionalProperties": False,
    "properties": properties,
  }


NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 50}
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RULE = closed(
  ["name", "action"],
  name={"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
  action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
  onJobFailureReasons={
    "type": "array",
    # Reasons for which Kubernetes' Job controller lets a Job fail.
    "items": {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]},
  },
)
REPLICATED = closed(
  ["name", "template"],
  name=NAME,
  replicas={"type": "integer", "minimum": 1},
  template=closed(["spec"], spec={"type": "object"}),
)
JOB_SET = closed(
  ["apiVersion", "kind", "metadata", "spec"],
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=closed(["name"], name=NAME, labels=TEXTS, annotations=TEXTS),
  spec=closed(
    ["replicatedJobs"],
    failurePolicy=closed(
      [],
      maxRestarts={"type": "integer", "minimum": 0},
      rules={"type": "array", "items": RULE},
    ),
    replicatedJobs={"type": "array", "items": REPLICATED, "minItems": 1},
  ),
)


def manifests(shell, action: str, **environment: str) -> list[dict]:
  """What kubectl would get."""
  result = shell.run(["launch/gke.sh", action, *FLAGS], **GKE, **environment)
  assert result.returncode == 0, result.stderr
  out = []
  for *command, text in shell.calls():
    assert command == ["kubectl", "create", "--filename", "-"]
    out.append(yaml.safe_load(text))
  return out


def jobs(manifest: dict) -> list[dict]:
  """The Jobs of a JobSet, checked; or the Job itself, checked."""
  if manifest["kind"] == "JobSet":
    jsonschema.validate(manifest, JOB_SET)
    inner = [one["template"] for one in manifest["spec"]["replicatedJobs"]]
    metadata = {"name": "inner"}
    found = [
      {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, **one}
      for one in inner
    ]
  else:
    found = [manifest]
  for job in found:
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
  return found


def pod(job: dict) -> dict:
  return job["spec"]["template"]["spec"]


EVERY = [
  ("train", {"ACCELERATOR": "gpu"}),
  ("train", {"ACCELERATOR": "tpu"}),
  ("follow", {"ACCELERATOR": "gpu"}),
  ("follow", {"ACCELERATOR": "tpu"}),
  ("evaluate", {"ACCELERATOR": "gpu", "SHARDS": "2"}),
  ("evaluate", {"ACCELERATOR": "tpu", "SHARDS": "2"}),
  ("merge", {}),
]


@pytest.mark.parametrize("action, environment", EVERY)
def test_manifests_follow_the_schema(shell, action, environment):
  for manifest in manifests(shell, action, **environment):
    for job in jobs(manifest):
      (container,) = pod(job)["containers"]
      assert set(FLAGS) <= set(container["args"])
      assert container["image"] == "rankclip:1"
      # `delete` and `logs` find it by its label.
      assert manifest["metadata"]["labels"] == {"rankclip": "run1"}
      assert job["spec"]["template"]["metadata"]["labels"] == {"rankclip": "run1"}


@pytest.mark.parametrize("break_it", ["completions", "restartPolicy", "podFailurePolicy"])
def test_the_schema_would_notice(shell, break_it):
  (manifest,) = manifests(shell, "train", ACCELERATOR="gpu")
  text = json.dumps(manifest).replace(f'"{break_it}"', f'"{break_it}s"')
  with pytest.raises(kubernetes_validate.ValidationError):
    jobs(json.loads(text))
  with pytest.raises(jsonschema.ValidationError):
    jobs(json.loads(json.dumps(manifest).replace('"maxRestarts"', '"restarts"')))


def stopped() -> int:
  text = (ROOT / "rankclip_jax" / "stopping.py").read_text(encoding="utf-8")
  found = re.search(r"^EXIT_STOPPED = (\d+)$", text, re.MULTILINE)
  assert found
  return int(found[1])


@pytest.mark.parametrize("action, environment", EVERY)
def test_a_stop_with_saved_state_is_no_failure(shell, action, environment):
  for manifest in manifests(shell, action, **environment):
    for job in jobs(manifest):
      rules = job["spec"]["podFailurePolicy"]["rules"]
      # A training starts again as a whole, by the JobSet; a single process in place.
      expected = "FailJob" if manifest["kind"] == "JobSet" else "Ignore"
      assert {rule["action"] for rule in rules} == {expected}
      assert rules[0]["onExitCodes"] == {"operator": "In", "values": [stopped()]}
      assert rules[1]["onPodConditions"] == [
        {"type": "DisruptionTarget", "status": "True"}
      ]
      # Kubernetes refuses a podFailurePolicy with any other.
      assert pod(job)["restartPolicy"] == "Never"
    if manifest["kind"] == "JobSet":
      (rule,) = manifest["spec"]["failurePolicy"]["rules"]
      assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
      assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
      assert job["spec"]["backoffLimit"] == 0


def test_processes_on_gpus_find_each_other(shell):
  (manifest,) = manifests(shell, "train", ACCELERATOR="gpu", NODES="3")
  (job,) = jobs(manifest)
  (container,) = pod(job)["containers"]
  flags = dict(arg.split("=", 1) for arg in container["args"])
  assert flags["--config.distributed.num_processes"] == "3"
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
  assert job["spec"]["completionMode"] == "Indexed"
  # JobSet's host names: set, replicated job, index of the job, index of the pod; the set.
  (replicated,) = manifest["spec"]["replicatedJobs"]
  host, port = flags["--config.distributed.coordinator"].split(":")
  assert host == f"run1-{replicated['name']}-0-0.run1"
  assert int(port) in [one["containerPort"] for one in container["ports"]]
  variable = flags["--config.distributed.process_id"]
  assert variable.removeprefix("$(").removesuffix(")") in [
    one["name"] for one in container["env"] if "valueFrom" in one
  ]


def test_a_slice_of_tpus_is_taken_whole(shell):
  wanted = {"TPU_TOPOLOGY": "2x4", "HOSTS": "2", "CHIPS": "4"}
  (manifest,) = manifests(shell, "train", ACCELERATOR="tpu", **wanted)
  (job,) = jobs(manifest)
  assert pod(job)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4"
  (container,) = pod(job)["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
  assert "--config.distributed.mode=auto" in container["args"]


def test_shards_share_an_evaluation_and_are_merged(shell):
  shards = manifests(shell, "evaluate", ACCELERATOR="gpu", SHARDS="3")
  assert [one["metadata"]["name"] for one in shards] == [
    f"run1-eval-{i}" for i in range(3)
  ]
  for i, manifest in enumerate(shards):
    (container,) = pod(manifest)["containers"]
    assert f"--config.eval.shard={i}" in container["args"]
    assert "--config.eval.num_shards=3" in container["args"]
  (merge,) = manifests(shell, "merge", SHARDS="3")
  (container,) = pod(merge)["containers"]
  assert "--config.eval.num_shards=3" in container["args"]
  assert {"name": "JAX_PLATFORMS", "value": "cpu"} in container["env"]


def test_a_template_with_an_unknown_name_is_an_error(shell, tmp_path):
  text = (ROOT / "launch" / "gke.sh").read_text(encoding="utf-8")
  (tmp_path / "launch" / "gke").mkdir(parents=True)
  (tmp_path / "launch" / "gke.sh").write_text(text, encoding="utf-8")
  for name in ("dry_run.sh", "values.sh"):
    shutil.copy(ROOT / "launch" / name, tmp_path / "launch" / name)
  (tmp_path / "launch" / "gke" / "one.yaml").write_text("name: $NAMES", encoding="utf-8")
  result = shell.run(["bash", str(tmp_path / "launch" / "gke.sh"), "merge"], **GKE)
  assert result.returncode != 0
  assert "NAMES" in result.stderr
  assert shell.calls() == []


@pytest.mark.parametrize("action, environment", EVERY)
def test_pods_get_the_variables_that_are_named(shell, action, environment):
  mine = {"PASS_ENV": "NCCL_DEBUG", "NCCL_DEBUG": 'in "quotes": $HOME 😀'}
  for manifest in manifests(shell, action, **environment, **mine):
    pod = (
      manifest["spec"].get("template")
      or (manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"])
    )
    (container,) = pod["spec"]["containers"]
    assert {"name": "NCCL_DEBUG", "value": mine["NCCL_DEBUG"]} in container["env"]
