"""`twinfleet cluster`: on which node each shard is served, and moving shards between nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from twinfleet.client import Document, OperatorClient
from twinfleet.errors import DoesNotMove
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table

app = typer.Typer(help="See and change where shards are served.", rich_markup_mode=None)

Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]

_ASK_AGAIN_S: Final = 0.1
# A shard moves within a second; a node may have hundreds.
_PATIENCE_S: Final = 120.0


@app.command("list", epilog=example("twinfleet cluster list -o json"))
def list_shards(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the shard actors of every node, with the shards that they serve."""
    document = OperatorClient.of(data_dir).placement()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    print_table(
        ("NODE", "ACTOR", "STATE", "SHARDS"),
        [
            (
                actor["node"],
                actor["name"],
                "drained" if actor["is_drained"] else "in use",
                " ".join(map(str, actor["shards"])) or "-",
            )
            for actor in document.content["actors"]
        ],
    )
    for move in document.content["moves"]:
        print_line(f"shard {move['shard']} is moving from {move['from']} to {move['to']}")


@app.command("move", epilog=example("twinfleet cluster move 3 cellar"))
def move(
    shard: Annotated[int, typer.Argument(metavar="SHARD", help="The shard's number.")],
    target: Annotated[str, typer.Argument(metavar="NODE", help="A node, or one of its shard actors.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move a shard to a node, and wait until it is served there."""
    client = OperatorClient.of(data_dir)
    begun = client.move_shard(shard, target)
    _await(client, begun, lambda move: bool(move["shard"] == shard))
    print_line(f"shard {shard} is served on {target}")


@app.command("drain", epilog=example("twinfleet cluster drain cellar"))
def drain(
    node: Node,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Give it its share of the shards again.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Move all shards off a node, keep them off, and wait until it serves none."""
    client = OperatorClient.of(data_dir)
    begun = client.fill_node(node) if undo else client.drain_node(node)
    _await(client, begun, lambda _: True)
    print_line(f"node {node} has its share of the shards" if undo else f"node {node} serves no shard")


def _await(client: OperatorClient, begun: Document, concerns: Callable[[dict[str, Any]], bool]) -> None:
    """Return when no move that concerns the caller is left to do."""
    deadline_s = time.monotonic() + _PATIENCE_S
    document = begun
    while left := [move for move in document.content["moves"] if concerns(move)]:
        if time.monotonic() > deadline_s:
            names = ", ".join(str(move["shard"]) for move in left)
            raise DoesNotMove(
                f"shards {names} have not moved after {_PATIENCE_S:.0f} s, and are still to; see `twinfleet status`"
            )
        time.sleep(_ASK_AGAIN_S)
        document = client.placement()
