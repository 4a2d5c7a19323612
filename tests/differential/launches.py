"""Launches that W&B's agent runs rightly: from these both agents have to make the same request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.differential.wandb_agent import Job

ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
IMAGES = st.sampled_from(
    [f"{ECR}/train:1", f"{ECR}/a/b@sha256:" + "0" * 64, "210987654321.dkr.ecr.eu-west-1.amazonaws.com/x"]
)
BUILT = f"{ECR}/built@sha256:" + "ab" * 32
JOB = "acme/vision/train:v3"
WORDS = st.text(alphabet="abcXYZ019-_.é ", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
MACROS = ("${project_name}", "${entity_name}", "${run_id}", "${image_uri}", "${no_such_macro}")
TEXTS = st.one_of(WORDS, st.sampled_from(MACROS), st.sampled_from(["", "$HOME", "a ${run_id} b", "1e-3"]))
RUN_IDS = st.from_regex(r"[a-z0-9]{1,12}(-[a-z0-9]{1,4})?", fullmatch=True)
NAMES = st.from_regex(r"[A-Z_]{2,8}", fullmatch=True).filter(
    lambda name: not name.startswith(("LAUNCH", "WANDB"))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9**9) | st.floats(-1, 1) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CONFIGS = st.one_of(
    st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    # Around the border of one variable, and beyond it.
    st.integers(480, 540).map(lambda length: {"k": "v" * length}),
    st.integers(900, 4000).map(lambda length: {"text": 'é"' * (length // 8)}),
)
WORD_LISTS = st.lists(TEXTS.filter(bool), min_size=1, max_size=4)


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of the keys."""
    return st.fixed_dictionaries({}, optional=strategies)


OVERRIDES = optional(
    args=WORD_LISTS,
    entry_point=WORD_LISTS,
    run_config=CONFIGS,
    files=CONFIGS,
    artifacts=st.dictionaries(WORDS, st.fixed_dictionaries({"id": WORDS, "usedAs": WORDS}), max_size=2),
    working_dir=WORDS,
    dockerfile=WORDS,
)
# Spellings that W&B's runner understands, and a few parameters of each type.
ALGORITHMS = st.fixed_dictionaries(
    {"TrainingInputMode": st.sampled_from(["File", "Pipe", "FastFile"])},
    optional={
        "MetricDefinitions": st.just([{"Name": "loss", "Regex": "loss=([0-9.]+)"}]),
        "ContainerEntrypoint": WORD_LISTS,
        "ContainerArguments": WORD_LISTS,
        "EnableSageMakerMetricsTimeSeries": st.booleans(),
    },
)
VPC = st.just({"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]})
SPOT = st.just(
    {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
        "CheckpointConfig": {"S3Uri": "s3://ckpt/${run_id}"},
    }
)
SAGEMAKER = optional(
    TrainingJobName=st.sampled_from(["${project_name}-${run_id}", "fixed-name", "${run_id}"]),
    AlgorithmSpecification=ALGORITHMS,
    Environment=st.dictionaries(NAMES, TEXTS, max_size=4),
    HyperParameters=st.dictionaries(WORDS, TEXTS, max_size=3),
    Tags=st.lists(st.sampled_from("abcde"), unique=True, max_size=3).map(
        lambda keys: [{"Key": key, "Value": "${project_name}"} for key in keys]
    ),
    VpcConfig=VPC,
    vpc_config=VPC,
    enable_network_isolation=st.booleans(),
    InputDataConfig=st.just(
        [
            {
                "ChannelName": "train",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/${entity_name}"}},
            }
        ]
    ),
    EcrRepoName=WORDS,
    region=st.just("us-east-1"),
    builder=st.just({"accelerator": {"base_image": "nvidia/cuda:12.4.1"}}),
    RetryStrategy=st.just({"MaximumRetryAttempts": 3}),
).filter(lambda given: not {"VpcConfig", "vpc_config"} <= given.keys())
ROLES = st.sampled_from(
    [
        {"RoleArn": "arn:aws:iam::123456789012:role/sm-exec"},
        {"RoleArn": "sm-exec"},
        {"role_arn": "service-role/AmazonSageMaker-ExecutionRole-1"},
    ]
)
SPEC = optional(
    name=WORDS,
    author=WORDS,
    sweep_id=st.one_of(RUN_IDS, st.just({})),
    git=optional(version=WORDS, repo=WORDS),
    uri=st.none(),
    _resume_count=st.integers(0, 3),
    _wandb_api_key=st.just("c" * 40),
    priority=st.integers(0, 3),
    python_version=st.just("3.11"),
    template_variables=st.just({"x": 1}),
)


@dataclass(frozen=True)
class Case:
    """A message, and what the worker knows besides."""

    message: dict[str, Any]
    job: Job | None = None
    built: str = ""
    """Image of the job, once it is fetched and built."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A launch of any source, valid in every part."""
    source = draw(st.sampled_from(["docker", "image_uri", "image job", "code job", "TrainingImage"]))
    given = draw(SAGEMAKER)
    sagemaker: dict[str, Any] = {
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "OutputDataConfig": {"S3OutputPath": "s3://out/${project_name}"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        **draw(ROLES),
        **given,
        **(draw(SPOT) if draw(st.booleans()) else {}),
    }
    if draw(st.booleans()):
        sagemaker["resource_config"] = sagemaker.pop("ResourceConfig")
    spec: dict[str, Any] = {
        "entity": draw(st.sampled_from(["acme", "Acme-Team"])),
        "project": draw(st.sampled_from(["vision", "Vision", "model-registry"])),
        "run_id": draw(RUN_IDS),
        "resource": "sagemaker",
        "overrides": draw(OVERRIDES),
        **draw(SPEC),
    }
    job: Job | None = None
    built = ""
    if source == "docker":
        spec["docker"] = {"docker_image": draw(IMAGES), "user_id": 1000}
    elif source == "image_uri":
        spec |= {"docker": {}, "image_uri": draw(IMAGES)}
    elif source == "TrainingImage":
        algorithm = sagemaker.setdefault("AlgorithmSpecification", {"TrainingInputMode": "File"})
        sagemaker["AlgorithmSpecification"] = {**algorithm, "TrainingImage": draw(IMAGES)}
        spec["job"], job, built = JOB, Job(entry_point=("python", "job.py")), BUILT
    elif source == "image job":
        spec["job"], built = JOB, draw(IMAGES)
        job = Job(image=built, entry_point=draw(st.sampled_from([(), ("python", "job.py")])))
    else:
        spec["job"], job, built = JOB, Job(entry_point=("python", "train.py", "--epochs", "3")), BUILT
    spec["resource_args"] = {"sagemaker": sagemaker}
    envelope = draw(
        optional(queue=WORDS, entity=st.just("queue-owner"), options=optional(log_target=st.just("off")))
    )
    return Case({"runQueueItemId": "UnVuUXVldWVJdGVtOjQx", "runSpec": spec, **envelope}, job, built)
