"""The command line: what operators and testers type, and nothing else.

Commands hold no logic: they read their options, call what does the work, and print what it answers. Nothing here
imports Ray, the web framework, DuckDB or Arrow before a command needs it, so that `twinfleet twin get` starts at once.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `client` · `credentials` · `stopping` · `documents` · `printing` · `options` · `issuing` ·
`things_file` · `bulk_creation` · `bulk_progress` ·
`commands_platform` · `commands_backup` · `commands_twin` · `commands_device` · `commands_certificate` ·
`commands_fleet` · `commands_job` · `commands_command` · `commands_key` · `commands_provisioning` ·
`commands_cluster` · `commands_query` ·
`scenario_views` · `commands_scenario` · `commands_run` · `commands_report` · `commands_audit` · `cli`
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
