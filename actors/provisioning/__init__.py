"""Provisioning by claim: devices that share a certificate become things of their own, one after the other.

Owns the templates' language, the hook, whose turn it is at the broker, what is answered, and the routes with which
templates and claims are made. Not here: how templates and tokens are kept (`registry`), keys and signatures (`pki`),
the broker's lists (`access`), and how a thing comes to be (`gateway`).

Reading order (a module imports only modules that stand before it in this list): `template` · `turns` · `hook` ·
`office` · `desk` · `routes`
"""
