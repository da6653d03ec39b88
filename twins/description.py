"""The parts of a twin's description, as `Operation.DESCRIBE` gives it, and what the fleet index has of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twins.handover import Pin
from twins.messages import Connectivity
from twins.shadow import ShadowDocument
from twins.simulated import SimulatedFleet


def describe_shadow(document: ShadowDocument | None, now_s: int) -> dict[str, Any] | None:
    """Return a shadow's sections with its delta, metadata and version beside them; None where there is none."""
    if document is None or not document.exists:
        return None
    whole = document.document(now_s)
    state: dict[str, Any] = whole["state"]
    return {**state, "metadata": whole["metadata"], "version": whole["version"]}


def describe_connectivity(known: Connectivity | None) -> dict[str, Any] | None:
    """Return what is known of a real thing's connection, None for a thing that has never connected."""
    if known is None:
        return None
    return {
        "connected": known.connected,
        "timestamp": known.timestamp,
        "disconnect_reason": known.disconnect_reason or None,
        "session": known.session,
        "version": known.version,
    }


def describe_simulated(fleet: SimulatedFleet, row: int) -> dict[str, Any]:
    """Return what a simulated device is, beside its shadows; its link has no sessions."""
    group = fleet.group
    attributes = {each.name: each.values[int(fleet.attributes[each.name][row])] for each in group.attributes}
    link = {"connected": bool(fleet.connected[row]), "timestamp": None, "disconnect_reason": None}
    return {
        "origin": "simulated",
        "model": group.model.name,
        "attributes": attributes,
        "connectivity": {**link, "session": None, "version": None},
    }


def describe_pin(pin: Pin | None) -> dict[str, Any] | None:
    """Return the behaviour that a twin has of its own, None where it has none; times are the twin's."""
    return None if pin is None else {"behavior": pin.behavior, "stepped_at": pin.stepped_s}


def indexed(twin: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a twin's description says of shadows, connection and device, with the names of the fleet index."""
    named = {name: _shadow_part(shadow) for name, shadow in twin["namedShadows"].items()}
    classic = {} if twin["shadow"] is None else _shadow_part(twin["shadow"])
    link = twin["connectivity"]
    return {
        "shadow": {**classic, **({"name": named} if named else {})} or None,
        # As the service has it for a thing that never connected.
        "connectivity": {"connected": False} if link is None else _connectivity_part(link, twin["thingName"]),
        "deviceDefender": twin["defender"],
    }


def _shadow_part(shadow: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: shadow[name] for name in ("desired", "reported", "metadata", "version") if name in shadow}
    return {**parts, "hasDelta": "delta" in shadow}


def _connectivity_part(link: Mapping[str, Any], thing_name: str) -> dict[str, Any]:
    part = {"connected": link["connected"], "timestamp": link["timestamp"], "clientId": thing_name}
    reason = link["disconnect_reason"]
    return part if reason is None else {**part, "disconnectReason": reason}
