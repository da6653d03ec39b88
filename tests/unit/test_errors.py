"""Errors cross processes: Ray pickles whatever an actor raises."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import errors as actors_errors
from actors.errors import ActorsError
from scenarios import errors as scenarios_errors
from scenarios.errors import ScenariosError
from twins import errors as twins_errors
from twins.errors import TwinError

FILE = Path("somewhere/file")
INSTANCES: tuple[Exception, ...] = (
    ActorsError("plain"),
    actors_errors.WorldError("it is away", retryable=True),
    actors_errors.BrokerError("it is away", retryable=True),
    actors_errors.StoreError("it is full", retryable=True, is_full=True),
    actors_errors.LocationError("s3://bucket", "is away", retryable=True),
    actors_errors.SnapshotsUnreadable("s3://bucket", 3, ["3-1", "3-2"]),
    actors_errors.BackupUnusable("s3://bucket/b", "is cut off"),
    actors_errors.SnapshotGone(3),
    actors_errors.ShardUnavailable(3, "it starts"),
    actors_errors.ShardNotHere(3, "it is elsewhere"),
    actors_errors.Overloaded("shard actor 0"),
    actors_errors.SqlEngineError(),
    actors_errors.ShardFenced(3, 7),
    actors_errors.BridgeSuperseded("app.bridge/3"),
    actors_errors.PlatformNotRunning(FILE, "no file"),
    actors_errors.NodeNameTaken("attic"),
    actors_errors.DataDirectoryBusy(FILE, None),
    actors_errors.DataDirectoryVersion(FILE, "9", 1),
    actors_errors.PortInUse("127.0.0.1", 80, "--api-port"),
    actors_errors.ToolMissing("mosquitto", "mosquitto", (FILE, FILE)),
    actors_errors.ProcessEnded("redis", None, log_file=FILE, log_tail="out of luck"),
    actors_errors.CertificateStoreError(FILE, "is missing"),
    actors_errors.VaultError(FILE, "holds no key"),
    actors_errors.OperatorError("no"),
    actors_errors.PlacementError("attic", "there is no such node"),
    actors_errors.BehaviorUnusable("rooms:Heated", "raises"),
    actors_errors.AnswerTooLate(2.0),
    actors_errors.BackupRefused("DIR", "is not empty"),
    actors_errors.SettingsError("command line", "mqtt_port", "too large"),
    actors_errors.CertificateRequestError("lamp", "no request"),
    actors_errors.CertificateNameTaken("application", "wall"),
    actors_errors.CertificateNotFound("certificate 'x'"),
    actors_errors.RecordInUse("provisioning template", "lamps", "claim 'line-1'"),
    actors_errors.ProvisioningRefused(403, "AccessDenied", "the hook said no"),
    actors_errors.DescriptionError("thing name", "too long"),
    actors_errors.ThingExists("lamp", "is registered"),
    actors_errors.ThingNotFound("lamp"),
    actors_errors.AccessKeyExists("ci"),
    actors_errors.AccessKeyNotFound("ci"),
    actors_errors.SignatureRefused("InvalidSignatureException", "it differs"),
    actors_errors.FleetExists("hall", "exists"),
    actors_errors.FleetNotFound("hall"),
    actors_errors.RecordExists("thing type", "lamp"),
    actors_errors.RecordNotFound("thing group", "hall"),
    actors_errors.RecordVersionConflict("thing 'lamp'", expected=2, current=1),
    ScenariosError("plain"),
    scenarios_errors.ScenarioInvalid([scenarios_errors.Problem("a.yaml", 2, 1, "seed", "is none")]),
    scenarios_errors.NameTaken("group", "hall", "by whom"),
    scenarios_errors.FaultImpossible("no platform"),
    scenarios_errors.SummaryUnreadable(Path("summary.json"), "is none"),
    scenarios_errors.DeviceFailed("lamp", "dark"),
    scenarios_errors.LoadFailed("load process 1 has ended with 9"),
    scenarios_errors.Aborted("reports: count > 3 held for 5 s, at 9 s"),
    scenarios_errors.LoadFailed("load process 1 has ended"),
    scenarios_errors.Interrupted(12),
    TwinError("plain"),
    twins_errors.RequestError(),
    twins_errors.InvalidRequest("Invalid JSON"),
    twins_errors.QueryError.at(3, "a field is missing"),
    twins_errors.ShadowNotFound.named("lamp", "config"),
    twins_errors.TwinNotFound.of("lamp"),
    twins_errors.VersionConflict(),
    twins_errors.Overtaken(),
    twins_errors.PayloadTooLarge(),
    twins_errors.RolloutError("it is over"),
    twins_errors.ExecutionError("InvalidStateTransition", "it is over", {"status": "SUCCEEDED"}),
    twins_errors.UnsupportedEncoding(),
    twins_errors.ModelError("no such field"),
    twins_errors.ModelInvalid([twins_errors.Mistake(("fields", 0, "unit"), "is missing")]),
    twins_errors.InvariantError("a bug"),
    twins_errors.SnapshotError("cut off"),
    twins_errors.SnapshotVersion("of a newer version"),
)


def tree(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from tree(kind)


@pytest.mark.parametrize("error", INSTANCES, ids=lambda error: type(error).__name__)
def test_an_error_comes_out_of_a_pickle_as_it_went_in(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


@pytest.mark.parametrize("base", [ActorsError, ScenariosError, TwinError])
def test_every_error_of_the_tree_is_among_those_that_were_pickled(base: type[Exception]) -> None:
    # Ray makes subclasses of its own as it goes.
    ours = {kind for kind in tree(base) if kind.__module__.endswith(".errors")}
    assert ours <= {type(error) for error in INSTANCES}
