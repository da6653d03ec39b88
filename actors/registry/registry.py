"""The registry as a whole: one store, and a part for each kind of record."""

from __future__ import annotations

from actors.registry.access_keys import AccessKeys
from actors.registry.certificates import Certificates
from actors.registry.commands import Commands
from actors.registry.fleets import Fleets
from actors.registry.groups import ThingGroups
from actors.registry.placement_notes import PlacementNotes
from actors.registry.store import RegistryStore
from actors.registry.templates import Templates, Tokens
from actors.registry.things import Things
from actors.registry.types import ThingTypes
from twins.clock import Clock


class Registry:
    """The registry of one platform; see `RegistryStore` for who may change it, and for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self.certificates = Certificates(store)
        self.types = ThingTypes(store)
        self.groups = ThingGroups(store)
        self.things = Things(store, self.certificates)
        self.fleets = Fleets(store)
        self.commands = Commands(store)
        self.access_keys = AccessKeys(store)
        self.templates = Templates(store)
        self.tokens = Tokens(store)
        self.placement_notes = PlacementNotes(store)

    @classmethod
    async def open(
        cls, url: str, clock: Clock, *, prefix: str = "twinfleet:", is_writer: bool = True
    ) -> Registry:
        """Return the registry kept in the Redis at `url`; with `is_writer`, this process is now its one writer."""
        registry = cls(await RegistryStore.open(url, clock, prefix=prefix, is_writer=is_writer))
        if is_writer:
            await registry.certificates.index_older()
        return registry

    async def note(self, action: str, subject: str, *, by: str) -> None:
        """Note in the stream who has had a twin changed, of which the registry itself keeps nothing."""
        await self._store.change(action, subject, [], by=by)

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._store.close()
