"""What the platform knows of things, certificates, standing fleets and jobs, kept in its Redis.

Owns the records, their rules and how they change; one process writes, the gateway, and for jobs their coordinator. Not
here: keys and signatures (`pki`), twins (`fleet`), and in which order they change together (`gateway`).

Reading order (a module imports only modules that stand before it in this list): `records` · `store` · `certificates` ·
`types` · `groups` · `things` · `fleets` · `commands` · `access_keys` · `templates` · `placement_notes` ·
`registry` · `jobs` · `job_orders`
"""
