"""`twinfleet up`, `down` and `status`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Final

import typer

from actors.errors import SettingsError
from actors.settings import PlatformSettings, absolute_location
from twinfleet import __version__
from twinfleet.client import OperatorClient
from twinfleet.errors import UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat
from twinfleet.printing import print_document, print_line, print_table
from twinfleet.stopping import stop_platform

# Options whose names are shorter than the settings'.
_OPTION_OF: Final = {
    "--shard-count": "--shards",
    "--shard-actor-count": "--shard-actors",
    "--snapshot-location": "--snapshots",
}
_PORT: Final = "(0: a free one)"


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    *,
    mqtt_port: Annotated[int | None, typer.Option(metavar="N", help=f"MQTT over TLS {_PORT}.")] = None,
    device_port: Annotated[int | None, typer.Option(metavar="N", help=f"HTTPS for devices {_PORT}.")] = None,
    api_port: Annotated[int | None, typer.Option(metavar="N", help=f"HTTP for operators {_PORT}.")] = None,
    shards: Annotated[
        int | None, typer.Option(metavar="N", help="Number of shards; fixed at the first start.")
    ] = None,
    shard_actors: Annotated[
        int | None, typer.Option(metavar="N", help="Number of processes that host shards.")
    ] = None,
    snapshots: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where snapshots lie: a path, file:// or s3:// (default: DIR/snapshots)."
        ),
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD", help="Directory with the head's endpoints.json and ray.token, or copies of them."
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the further node is called (default: as its host)."),
    ] = None,
    cluster_address: Annotated[
        str | None,
        typer.Option(metavar="IP", help="This machine's address for other nodes (default: loopback only)."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of secrets at rest (default: DIR/vault.key).")
    ] = None,
) -> None:
    """Run the platform until Ctrl-C or `twinfleet down`, or with --join a further node of one.

    When everything is ready, DIR/endpoints.json says where. A node serves its share of the shards; when it is stopped
    they move to others.
    """
    overrides = {
        "mqtt_port": mqtt_port,
        "device_port": device_port,
        "api_port": api_port,
        "shard_count": shards,
        "shard_actor_count": shard_actors,
        "snapshot_location": None if snapshots is None else absolute_location(snapshots, Path()),
        "cluster_address": cluster_address,
        "key_file": None if key_file is None else key_file.absolute(),
    }
    try:
        settings = PlatformSettings.load(data_dir, overrides)
    except SettingsError as error:
        raise SettingsError(error.source, _OPTION_OF.get(error.key, error.key), error.problem) from None
    if join is not None:
        _up_node(settings, join, node or socket.gethostname().partition(".")[0].lower())
        return
    if node is not None:
        raise UsageFault("--node NAME is for a further node, which takes --join HEAD as well")
    # Ray takes a second to import, which no other command should wait for.
    from actors.cluster import run_platform  # noqa: PLC0415

    print_line(f"data in {data_dir}; Ctrl-C or `twinfleet down --data-dir {data_dir}` stops it")
    run_platform(settings, version=__version__, progress=print_line)


def _up_node(settings: PlatformSettings, head: Path, name: str) -> None:
    # Ray takes a second to import, which no other command should wait for.
    from actors.node import NodeSettings, run_node  # noqa: PLC0415

    data_dir = settings.data_dir
    node = NodeSettings(
        name, data_dir, head.absolute(), settings.shard_actor_count, address=settings.cluster_address
    )
    print_line(f"node {name}, data in {data_dir}; Ctrl-C or `twinfleet down --data-dir {data_dir}` stops it")
    run_node(node, version=__version__, progress=print_line)


def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop the platform and wait until it has ended."""
    pid = stop_platform(data_dir)
    print_line(f"the platform on {data_dir} (process {pid}) has stopped; its data stays")


def status(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """Show the processes of the platform, and where to connect."""
    document = OperatorClient.of(data_dir).cluster()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    cluster = document.content
    print_table(
        ("ROLE", "PID", "STATE", "RESTARTS", "SHARDS", "TWINS", "QUEUE", "REASON"),
        [
            (
                f"{process['role']} {process['thing_name']}".rstrip(),
                process["pid"],
                process["state"],
                process["totals"].get("restarts", ""),
                len(process["shards"]),
                process["twin_count"],
                process["queue_length"],
                process["reason"],
            )
            for process in cluster["processes"]
        ],
    )
    if cluster["fleets"] is not None:
        simulated = sum(fleet["count"] for fleet in cluster["fleets"])
        print_line(f"{cluster['thing_count']} devices registered, {simulated} simulated in standing fleets")
    print_line(f"devices connect to mqtts://{cluster['mqtts']['host']}:{cluster['mqtts']['port']}")
    for reason in cluster["reasons"]:
        print_line(f"not ready: {reason}")
