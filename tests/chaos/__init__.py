"""Faults on a real platform, under the auditor: what was accepted is never lost, whatever dies.

A trial is a plan (a fault, or all of them: a storm) and a seed: load begins, a fault strikes at a moment that the seed
draws, is mended, the platform serves every thing again, the load ends, and all that anybody was told is judged.
`./dev test` runs two storms, short; `./dev chaos` many seeds of every plan, at full size, and writes `RESULT.json`.

Reading order: `seams` (what is patched in a platform under test) · `network` (one of our own, that can be cut) ·
`stage` (the platform) · `faults` · `relay` and `insider` (processes beside a node that is cut off) · `partition` ·
`plans` · `auditing` (the auditor's process) · `trial` · `result` (RESULT.json) · `__main__` (the command)
"""
