"""What each role may ask of the operators' API: the one table of it.

A rule is for a method and a path with all that stands below it; of those that fit, the one with the longest path
counts. What no rule names needs an admin.
"""

from __future__ import annotations

from typing import Final

from actors.registry.access_keys import Role

# Who may more may all that those before may.
_ROLES: Final[tuple[Role, ...]] = ("viewer", "operator", "admin")
_READ: Final = ("GET", "HEAD")
_CHANGE: Final = ("POST", "PUT", "PATCH", "DELETE")

# Paths that a viewer may read and an operator may change: things, their twins, shadows and certificates, groups, types,
# simulated fleets, jobs and commands, in the platform's own spelling and in AWS IoT's.
_SHARED: Final = (
    "/v1/things",
    "/v1/twins",
    "/v1/fleets",
    "/things",
    "/thing-groups",
    "/dynamic-thing-groups",
    "/thing-types",
    "/jobs",
    "/v1/commands",
    "/commands",
    "/command-executions",
)
# Paths that everybody may read and that nobody below an admin changes.
_READABLE: Final = (
    "/v1/cluster",
    "/v1/pins",
    "/openapi.json",
    "/api/things/shadow",
    "/retainedMessage",
    "/indices",
    "/principals",
    "/endpoint",
    "/v1/provisioning/templates",
)
_RULES: Final[dict[tuple[str, str], Role]] = {
    **{(method, path): "viewer" for method in _READ for path in (*_SHARED, *_READABLE)},
    **{(method, path): "operator" for method in _CHANGE for path in _SHARED},
    # A search changes nothing; its query only does not fit a path.
    ("POST", "/indices/search"): "viewer",
    ("POST", "/v1/sql"): "viewer",
    ("POST", "/v1/query"): "viewer",
    ("POST", "/topics"): "operator",
}


def least_role(method: str, path: str) -> Role:
    """Return the least role that may use a method on a path (decoded)."""
    position = len(path)
    while position > 0:
        role = _RULES.get((method, path[:position]))
        if role is not None:
            return role
        position = path.rfind("/", 0, position)
    return "admin"


def is_allowed(role: Role, needed: Role) -> bool:
    """Tell whether a role is at least the needed one."""
    return _ROLES.index(role) >= _ROLES.index(needed)
