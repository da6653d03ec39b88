"""The protocol of bridge, shards, journal and restarts under a seeded scheduler, with the real code of all of them.

Reading order: `scheduler` · `chance` · `store` · `broker` · `hosts` · `clients` · `world` · `bugs` · `test_protocol`

`python -m tests.simulation.protocol --seed 1234` tells the history of a seed.
"""
