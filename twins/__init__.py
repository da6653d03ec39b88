"""The domain: a pure, synchronous, single-threaded core that serves and simulates device twins.

Bytes and a time go in, events come out. Nothing here does I/O, reads a clock or draws luck of its own, so the same
code serves live devices and replays a seeded simulation bit for bit.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `clock` · `draws` · `sharding` · `topics` · `words` · `units` · `forms` · `expressions` · `link` · `faults`
· `model` · `formula_kinds` · `model_rules` · `model_reading` · `shipped` · `shadow` · `packed` · `cbor` · `defender`
· `messages` · `jobs` · `commands` · `rollout_cohorts` · `rollout_plan` · `rollout_states` · `rollout_columns` ·
`rollout_queues` · `rollout` · `places` · `window` · `arena` · `program` · `interpreter` · `kernel_loops` · `kernels`
· `runners` · `table` · `generators` · `selection` · `link_program` · `post` · `fault_program` · `behavior` ·
`simulated` · `handover` · `payloads` · `assignments` · `ticking` · `digest` · `simulation` · `overflow_columns` ·
`columns` · `telemetry_columns` · `query_terms` · `query_grammar` · `query` · `query_columns` · `description` ·
`shard` · `fleet_answer` · `snapshot_head` · `snapshot`
"""
