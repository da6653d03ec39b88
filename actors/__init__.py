"""The world around the core: Ray, sockets, stores, the wall clock, the environment and HTTP.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `settings` · `logs` · `wall_clock` · `metrics` · `pki` · `processes` · `broker` · `journal` · `snapshots` ·
`registry` · `sql` · `fleet` · `actor_settings` · `ray_runtime` · `ray_watcher` · `shard_actor` · `ray_fleet` ·
`mqtt_link` · `mqtt_session` · `mqtt_outbox` · `mqtt_bridge` · `gateway` · `bridge_actor` · `gateway_actor` · `pacer` ·
`cluster`
"""

import os

# Ray reads these when it is imported, so they are set before anything of ours can import Ray. Without the first one a
# driver replaces 127.0.0.1 by the host's address, looks for the platform there, and hangs; the second one makes every
# process prove that it knows the platform's token.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
