"""Configuration templates of the managed processes, with a reason beside every value that is not the default.

Rendered by `actors.broker`, which owns the values that differ between platforms (paths, ports, passwords).
"""
