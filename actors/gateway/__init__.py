"""HTTP: the operators' API, with a bearer token on loopback, and the devices' API, with mutual TLS.

Owns routes, bodies, errors as problem documents, who may ask what, and the order in which registry,
certificates, broker and twins change together. What a shadow is belongs to the shards; records and their
rules to the registry.

Reading order (a module imports only modules that stand before it in this list): `problems` · `platform_view`
· `middleware` · `shadow_routes` · `enrolment` · `standing_fleets` · `operators` · `devices` · `server`
"""
