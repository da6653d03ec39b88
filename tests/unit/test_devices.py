"""Real devices of a scenario on a platform, as far as they need none."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import WorldError
from actors.settings import Endpoints, MqttsEndpoint, RayEndpoint, UrlEndpoint
from scenarios.devices import PlatformDevices


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_token_that_cannot_be_read_is_named_with_its_file(tmp_path: Path, content: bytes | None) -> None:
    token_file = tmp_path / "operator.token"
    if content is not None:
        token_file.write_bytes(content)
    nowhere = UrlEndpoint("http://127.0.0.1:1")
    endpoints = Endpoints(
        pid=1,
        version="test",
        mqtts=MqttsEndpoint("127.0.0.1", 1),
        api=nowhere,
        metrics=nowhere,
        ca="",
        operator_token_file=str(token_file),
        redis=nowhere,
        ray=RayEndpoint("127.0.0.1:1", "", ""),
    )
    with pytest.raises(WorldError, match=r"operator\.token cannot be read"):
        PlatformDevices(endpoints)
