"""Stock boto3 clients, told nothing but where the platform is and with which access key."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

# Any region will do; a client wants one.
REGION = "eu-central-1"
DEADLINE_S = 20.0
# It keeps the descriptions of services, which take up to a second to read. Credentials are each client's own.
_SESSION = boto3.session.Session()


def boto3_client(service: str, url: str, access_key: dict[str, Any], **more: Any) -> Any:
    """Return a client of a service of AWS at `url`, without what this machine may have set up for AWS."""
    settings = {
        "aws_access_key_id": access_key["access_key_id"],
        "aws_secret_access_key": access_key["secret_access_key"],
    }
    # A 5xx is a finding, not something to try again.
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=DEADLINE_S, read_timeout=DEADLINE_S)
    return _SESSION.client(service, endpoint_url=url, region_name=REGION, config=config, **(settings | more))


def refusal(error: Any) -> tuple[int, str]:
    """Return the status and the error code that a ClientError carries."""
    answer = error.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]
