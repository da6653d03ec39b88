"""The world around the core: Ray, sockets, stores, the wall clock, the environment and HTTP.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `settings` · `logs` · `wall_clock` · `metrics` · `pki` · `processes` · `servers` · `broker` · `store` ·
`store_errors` · `journal` · `snapshots` · `registry` · `sql` · `fleet` · `actor_settings` · `shard_keeper` ·
`ray_runtime` · `ray_watcher` · `shard_actor` · `ray_fleet` · `mqtt_link` · `mqtt_session` · `mqtt_outbox` ·
`mqtt_bridge` · `gateway` · `bridge_actor` · `gateway_actor` · `pacer` · `cluster`
"""
