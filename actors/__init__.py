"""The world around the core: Ray, sockets, stores, the wall clock, the environment and HTTP.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `calls` · `settings` · `logs` · `wall_clock` · `metrics` · `vault` · `pki` · `processes` ·
`platform_processes` · `servers` · `broker_log` · `store` · `store_errors` · `store_client` · `store_watch` ·
`placement` · `membership` · `starts` · `journal` · `locations` · `snapshots` · `registry` · `broker_log_reader` ·
`broker` · `access` · `sql` · `sql_worker` · `sql_process` · `arrow_tables` · `behaviors` · `fleet` · `asking` ·
`actor_settings` · `supervisor` · `shard_keeper` · `tick_turns` · `ray_watcher` · `ray_runtime` · `shard_actor` ·
`homes` · `shard_mover` · `behavior_trial` · `ray_fleet` · `mqtt_packets` · `mqtt_link` · `mqtt_session` ·
`mqtt_taken` · `mqtt_statistics` · `retained` · `mqtt_retained` · `mqtt_properties` · `mqtt_outbox` ·
`mqtt_in_flight` · `unheard` · `mqtt_bridge` · `mqtt_events` · `queue_watch` · `attempts` · `sessions` · `presence` ·
`broker_events` · `delta_announcer` · `gateway` · `provisioning` · `job_coordination` · `job_coordinator` ·
`bridge_actor` · `gateway_actor` · `parts` · `pins` · `backup` · `stop_signals` · `pacer` · `cluster` · `node`
"""
