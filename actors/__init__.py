"""The world around the core: Ray, sockets, stores, the wall clock, the environment and HTTP.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `calls` · `settings` · `logs` · `wall_clock` · `metrics` · `vault` · `pki` · `processes` · `servers` ·
`broker_log` · `store` · `store_errors` · `store_watch` · `placement` · `membership` · `starts` · `journal` ·
`locations` · `snapshots` · `registry` · `broker_log_reader` · `broker` · `access` · `sql` ·
`sql_worker` · `sql_process` · `arrow_tables` · `fleet` · `asking` ·
`actor_settings` · `supervisor` · `shard_keeper` · `ray_watcher` · `ray_runtime` · `shard_actor` · `homes` ·
`shard_mover` · `ray_fleet` · `mqtt_link` · `mqtt_session` · `retained` · `mqtt_retained` · `mqtt_properties` ·
`mqtt_outbox` · `mqtt_in_flight` · `unheard` · `mqtt_bridge` · `mqtt_events` · `queue_watch` · `attempts` ·
`sessions` · `presence` · `broker_events` · `delta_announcer` · `gateway` · `provisioning` · `bridge_actor` ·
`gateway_actor` · `parts` · `backup` · `stop_signals` · `pacer` · `cluster` · `node`
"""
