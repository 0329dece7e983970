"""How many replicas there are and with what; keys; none of it needs Ray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fewstep.errors import UsageError
from fewstep.server import fleet

WORD = "a-long-secret"


def test_arguments_are_texts_or_what_they_mean() -> None:
    texts = fleet.parse({"replicas": "1-4", "threads": "2", "insecure": "true", "data": "/srv/fewstep"})
    values = fleet.parse({"replicas": "1-4", "threads": 2, "insecure": True, "data": Path("/srv/fewstep")})
    assert texts == values and values.bounds == (1, 4)
    assert fleet.parse({"replicas": 3}).bounds == (3, 3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replicas": "4-1"}, "fewest first"), ({"replicas": "0"}, "replicas"), ({"replica": 2}, "replica"),
        ({"keys": [{"name": "anna", "secret": WORD}]}, "FEWSTEP_KEYS"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(values: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        fleet.parse(values)
    assert WORD not in str(caught.value)


def test_no_key_is_an_error_unless_somebody_says_so() -> None:
    with pytest.raises(UsageError, match="insecure=true"):
        fleet.parse({}).named(())
    assert fleet.parse({"insecure": True}).named(()).server({}).keys == ()


def test_a_replica_with_other_keys_than_the_deployment_does_not_start() -> None:
    here = {"FEWSTEP_KEYS": f"anna:{WORD},ben:another-secret"}
    settings = fleet.parse({"model": "emoji-128", "limits": {"queue": 5}}).named(fleet.keys(here))
    stored = settings.model_dump_json()
    assert WORD not in stored and "anna" in stored, "Ray stores and shows what it is given"
    replica = settings.server(here)
    assert [key.name for key in replica.keys] == ["anna", "ben"]
    assert (replica.model, replica.limits.queue) == ("emoji-128", 5)
    for elsewhere in ({}, {"FEWSTEP_KEYS": f"anna:{WORD}"}, {"FEWSTEP_KEYS": f"carl:{WORD},{here}"}):
        with pytest.raises(UsageError):
            settings.server(elsewhere)


def test_keys_come_from_options_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("ben:in-the-file\n\ncarl:in-the-file-too\n")
    environment = {"FEWSTEP_KEYS": "anna:in-the-environment, ", "FEWSTEP_KEYS_FILE": str(file)}
    found = fleet.keys(environment, "dora:on-the-line")
    assert [key.name for key in found] == ["dora", "anna", "ben", "carl"]
    with pytest.raises(UsageError, match="cannot be read"):
        fleet.keys({"FEWSTEP_KEYS_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize("text", [WORD, f"anna {WORD}", "anna:short", f"an na:{WORD}", f":{WORD}"])
def test_a_key_that_is_none_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="NAME:SECRET") as caught:
        fleet.keys({}, text)
    assert WORD not in str(caught.value) and "short" not in str(caught.value)


def test_a_file_of_one_machine_is_no_database_for_two() -> None:
    fleet.parse({}).check_nodes(1)
    fleet.parse({"database": "postgresql+psycopg://fewstep@db/fewstep"}).check_nodes(3)
    with pytest.raises(UsageError, match="postgresql"):
        fleet.parse({}).check_nodes(2)


@pytest.mark.parametrize(
    ("values", "machine", "share"),
    [
        ({"replicas": "2"}, (8, 0, 1), (4, 0.0)), ({"replicas": "1-4"}, (8, 0, 1), (2, 0.0)),
        ({"replicas": "4"}, (8, 0, 4), (8, 0.0)), ({"replicas": "5"}, (8, 0, 4), (4, 0.0)),
        ({"replicas": "9"}, (2, 0, 1), (1, 0.0)), ({"replicas": "2", "threads": 3}, (8, 0, 1), (3, 0.0)),
        ({"replicas": "2"}, (8, 2, 1), (4, 1.0)), ({"replicas": "4", "gpus": 0.5}, (8, 2, 1), (2, 0.5)),
        ({"replicas": "2", "engine": "openvino"}, (8, 2, 1), (4, 0.0)),
    ],
)  # fmt: skip
def test_each_replica_has_its_share(
    values: dict[str, object], machine: tuple[int, float, int], share: tuple[int, float]
) -> None:
    assert fleet.parse(values).share(*machine) == share


def test_a_replicas_own_queue_refuses_first_and_in_its_own_words() -> None:
    settings = fleet.parse({"limits": {"queue": 40}, "batch": 8})
    assert settings.ongoing > 40 + 8 + 64, "orders that are held by requests, and 64 live sessions"
    assert settings.stopping > 2 * settings.grace


@pytest.mark.parametrize(
    ("orders", "replicas"), [([], 1), ([0, 0], 1), ([4], 1), ([5], 2), ([16, 0], 4), ([4, 4, 4], 3)]
)
def test_replicas_follow_orders(orders: list[float], replicas: int) -> None:
    assert fleet.wanted(orders, 4.0) == replicas


def test_a_cluster_of_our_own_has_a_token_and_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "0")
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "5")
    fleet.prepare()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["RAY_AUTH_MODE"] == "token"
    first = os.environ["RAY_AUTH_TOKEN"]
    fleet.prepare()
    second = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64 and second != first
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    fleet.prepare()
    assert os.environ["RAY_AUTH_TOKEN"] == second, "that of a cluster to be joined is the operator's"
