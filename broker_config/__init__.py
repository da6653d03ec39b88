"""Configuration templates of the managed processes, with a reason beside every value that is not the default.

Rendered by `actors.broker` and `actors.store`, which own the values that differ between platforms: paths, ports,
passwords.
"""
