"""The table of roles: who may ask what."""

from __future__ import annotations

import pytest

from actors.gateway.roles import is_allowed, least_role
from actors.registry.access_keys import Role


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v1/things", "viewer"),
        ("GET", "/v1/things/lamp", "viewer"),
        ("GET", "/v1/twins/lamp/telemetry", "viewer"),
        ("GET", "/v1/cluster", "viewer"),
        ("GET", "/things/lamp/shadow", "viewer"),
        ("GET", "/api/things/shadow/ListNamedShadowsForThing/lamp", "viewer"),
        ("GET", "/retainedMessage/a/b", "viewer"),
        ("GET", "/retainedMessage", "viewer"),
        ("POST", "/indices/search", "viewer"),
        ("POST", "/v1/sql", "viewer"),
        ("POST", "/v1/query", "viewer"),
        ("POST", "/things/lamp/shadow", "operator"),
        ("DELETE", "/things/lamp/shadow", "operator"),
        ("POST", "/topics/a/b", "operator"),
        ("POST", "/things/lamp", "operator"),
        ("POST", "/v1/things", "operator"),
        ("DELETE", "/v1/fleets/hall", "operator"),
        ("PUT", "/thing-groups/addThingToThingGroup", "operator"),
        ("GET", "/v1/cluster/placement", "viewer"),
        ("POST", "/v1/cluster/placement/shards/3", "admin"),
        ("POST", "/v1/cluster/placement/drained/cellar", "admin"),
        ("DELETE", "/v1/cluster/placement/drained/cellar", "admin"),
        ("POST", "/v1/twins/lamp/give-back", "operator"),
        ("GET", "/v1/pins", "viewer"),
        ("GET", "/jobs/update-1", "viewer"),
        ("PUT", "/jobs/update-1", "operator"),
        ("PUT", "/jobs/update-1/cancel", "operator"),
        ("DELETE", "/jobs/update-1", "operator"),
        ("PUT", "/things/lamp/jobs/update-1/cancel", "operator"),
        ("GET", "/v1/commands/lamp", "viewer"),
        ("POST", "/v1/commands", "operator"),
        # It runs code in the platform.
        ("PUT", "/v1/pins/lamp", "admin"),
        ("DELETE", "/v1/pins/lamp", "admin"),
        ("GET", "/v1/keys", "admin"),
        ("POST", "/v1/keys", "admin"),
        ("DELETE", "/v1/keys/ci", "admin"),
        ("POST", "/v1/provisioning/templates", "admin"),
        ("POST", "/v1/provisioning/claims", "admin"),
        ("GET", "/v1/certificates", "admin"),
        ("POST", "/v1/certificates/applications", "admin"),
        ("POST", "/v1/things/lamp/certificates", "operator"),
        ("POST", "/indices", "admin"),
        ("GET", "/v1/thingsandmore", "admin"),
        ("GET", "//v1/things", "admin"),
        ("GET", "/", "admin"),
        ("GET", "", "admin"),
        ("OPTIONS", "/v1/things", "admin"),
        ("get", "/v1/things", "admin"),
    ],
)
def test_every_path_needs_a_role(method: str, path: str, role: Role) -> None:
    assert least_role(method, path) == role


def test_a_role_may_what_those_below_it_may() -> None:
    ladder: list[Role] = ["viewer", "operator", "admin"]
    for position, role in enumerate(ladder):
        assert [is_allowed(role, needed) for needed in ladder] == [
            index <= position for index in range(len(ladder))
        ]
