"""QA: the scenario language, the engine that conducts a run, verdicts and reports.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `history` · `audit_rules` · `source` · `metrics` · `spec` · `workloads` · `reading` · `result` · `checks` ·
`brain` · `wire` · `devices` · `observer` · `steps` · `progress` · `engine` · `plots` · `report` · `run`

`reading` turns a file into the frozen objects of `spec`; `run` is the way in: a scenario from its file to its reports.
"""
