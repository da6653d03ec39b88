"""Backups: everything that a platform must not lose, at one instant, sealed under a key that the operator holds.

**What the cut is.** A running platform goes on while it is backed up. A second Redis follows the platform's as its
replica, and is cut off from it once it has caught up: what it then holds is what the platform's Redis held at one
instant, all transactions and scripts whole. That instant is the cut. The registry is as it was after one entry of its
stream, every shard as it was after one entry of its journal, and they belong together. What was accepted before the
command was given is in the backup. Files are copied after the cut: of snapshots those that the journals of the cut
reach and that are not ahead of them; certificates and secrets, which only ever are added to; and of the broker's
database what it retains, as of a second or two around the cut. Redis of a platform that is stopped is started for the
time, and nobody writes.

**Why so.** A registry is many records and indexes that change together; reading them one by one from a Redis that is
written to gives a state that never was. A replica is the one way to the state of an instant that holds nobody up and
asks nothing of the writers, whatever they may keep there in later versions. The price is memory: as much as the
platform's Redis uses, for as long as the backup takes. From the copy, keys are read by their types and not as Redis's
own dumps, so that any version of Redis takes them back, and so that every entry of a journal can be decoded while a
backup is checked. Shards are not asked: their snapshots and journals are what they would be recovered from, and loading
them is what proves them.

**After a restore** Redis goes on where the cut was: whoever opens a shard or the registry begins the next epoch, and
versions rise from there. The platform gets a new identity, so that it takes no place for snapshots from the one whose
backup it was.

Reading order (a module imports only modules that stand before it in this list): `cipher` · `records` · `broker_file` ·
`store_content` · `store_copy` · `content` · `source` · `create` · `verify` · `restore`
"""
