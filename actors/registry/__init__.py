"""What the platform knows of things, certificates and standing fleets, kept in its Redis.

Owns the records, their rules and how they change; one process writes, the gateway. Not here: keys and signatures
(`pki`), twins (`fleet`), and in which order they change together (`gateway`).

Reading order (a module imports only modules that stand before it in this list): `records` · `store` · `certificates`
· `types` · `groups` · `things` · `fleets` · `access_keys` · `templates` · `placement_notes` · `registry`
"""
