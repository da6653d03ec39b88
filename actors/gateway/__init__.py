"""HTTP: the operators' API, with a bearer token on loopback, and the devices' API, with mutual TLS.

Owns routes, bodies, errors as problem documents, who may ask what, and the order in which registry,
certificates, broker and twins change together. What a shadow is belongs to the shards; records and their
rules to the registry.

Reading order (a module imports only modules that stand before it in this list):
`problems` · `messaging` · `platform_view` · `middleware` · `roles` · `signature` · `authentication` · `key_routes` ·
`shadow_routes` · `data_routes` · `arns` · `registry_events` · `certificates` · `enrolment` · `grouping` ·
`searching` · `iot_bodies` · `iot_things` · `iot_groups` · `iot_search` · `iot_jobs` · `jobs_routes` ·
`command_routes` · `iot_commands` · `iot_routes` · `thing_routes` · `certificate_routes` · `sql_desk` · `sql_routes` ·
`query_routes` · `placement_routes` · `pin_routes` · `standing_fleets` · `operators` · `devices` · `server`
"""
