"""Faults on a real platform, under the auditor: what was accepted is never lost, whatever dies.

A trial is a fault and a seed: load begins, the fault strikes at moments that the seed draws, is mended, the platform
serves every thing again, the load ends, and all that anybody was told is judged. `./dev test` runs two seeds of each
fault, short; `./dev chaos` runs many, at full size, and writes `RESULT.json`.

Reading order: `seams` (what is patched in a platform under test) · `stage` (the platform) · `faults` ·
`auditing` (the auditor's process) · `trial` · `__main__` (the command)
"""
