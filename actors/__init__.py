"""The world around the core: Ray, sockets, stores, the wall clock, the environment and HTTP.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `settings` · `wall_clock` · `metrics` · `pki` · `processes` · `broker` · `journal` · `registry` · `sql` ·
`fleet` · `shard_actor` · `ray_fleet` · `mqtt_bridge` · `gateway` · `bridge_actor` · `gateway_actor` · `cluster`
"""
