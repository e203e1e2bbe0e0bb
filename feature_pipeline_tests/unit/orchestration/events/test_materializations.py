"""How events are stored in Dagster."""

import threading

import dagster as dg
import pytest

from feature_pipeline.orchestration.events.materializations import report_events

KEYS = dg.AssetKey(["letters", "records"]), dg.AssetKey(["letters", "features", "size"])


def test_the_last_event_of_each_asset_is_stored_last(monkeypatch: pytest.MonkeyPatch):
    """Dagster takes it for the asset's latest, and its number for that of any partition."""
    stored: list[tuple[dg.AssetKey, str | None]] = []
    is_last_stored = threading.Event()

    with dg.DagsterInstance.ephemeral() as instance:

        def store(event: dg.AssetMaterialization) -> None:
            # Others take longer: they wait for the last ones, which must not be under way yet.
            if event.partition == "b4":
                is_last_stored.set()
            else:
                is_last_stored.wait(0.2)
            stored.append((event.asset_key, event.partition))

        monkeypatch.setattr(instance, "report_runless_asset_event", store)
        report_events(
            instance,
            [dg.AssetMaterialization(key, partition=f"b{n}") for n in range(5) for key in KEYS],
        )
    assert len(stored) == len(set(stored)) == 10
    assert set(stored[-2:]) == {(key, "b4") for key in KEYS}
