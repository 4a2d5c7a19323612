"""Service Quotas of the local AWS, for `doctor`: how many instances of each type training jobs may have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from moto.core.utils import get_service_model
from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.responses import ServiceQuotasResponse

from worker.local.aws import page_of, replaced
from worker.local.sagemaker_api import TrainingJobs

INSTANCES = 20
"""Of each type, where the local SageMaker was given no quota; it holds nobody to this number."""
_PAGE = 100
"""Quotas in an answer, as AWS's at most (Service Quotas API reference, ListServiceQuotas)."""


def quotas_of(jobs: TrainingJobs) -> dict[str, int]:
    """Instances by the quota's name, as AWS names it, for all types that SageMaker trains on."""
    types: list[str] = get_service_model("sagemaker").shape_for("TrainingInstanceType").metadata["enum"]
    limits = jobs.instance_quotas
    on_demand = {f"{kind} for training job usage": limits.get(kind, INSTANCES) for kind in types}
    spot = {f"{kind} for spot training job usage": limits.get(f"{kind} spot", INSTANCES) for kind in types}
    return on_demand | spot


@contextlib.contextmanager
def aws_like_quotas(jobs: TrainingJobs) -> Iterator[None]:
    """ListServiceQuotas, which moto does not have, is answered for SageMaker while the context is open."""

    def list_service_quotas(self: ServiceQuotasResponse) -> str:
        asked = json.loads(self.body)
        if asked.get("ServiceCode") != "sagemaker":
            raise NoSuchResource
        quotas = [
            {"ServiceCode": "sagemaker", "QuotaName": name, "Value": float(value)}
            for name, value in quotas_of(jobs).items()
        ]
        size = min(int(asked.get("MaxResults") or _PAGE), _PAGE)
        page, more = page_of(quotas, asked.get("NextToken"), size)
        return json.dumps({"Quotas": page, **more})

    with replaced(ServiceQuotasResponse, list_service_quotas=list_service_quotas):
        yield
