"""QA: the scenario language, the engine that conducts a run, verdicts and reports; and the auditor.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `history` · `audit_progress` · `audit_rules` · `source` · `model_files` · `load_histogram` · `metrics` ·
`spec` · `stages` · `workloads` · `troubles` · `wire_words` · `scenario_form` · `layers` · `reading` · `result` ·
`fault_windows` · `cohorts` · `checks` · `trouble` · `relay` · `brain` · `device_link` · `wire` · `devices` ·
`load_orders` · `load_link` · `load_device` · `load_fleet` · `load_registrar` · `load_process` · `load_crew` ·
`wire_fleet` · `abort` · `observer` · `steps` · `progress` · `engine` · `plots` · `report_plots` · `report` ·
`comparison` · `interruption` · `auditor_clients` · `auditor_device` · `auditor_operator` · `auditor` ·
`wire_trouble` · `platform_blows` · `platform_trouble` · `run`

`reading` turns a file into the frozen objects of `spec`; `run` is the way in: a scenario from its file to its reports.
`auditor` drives a running platform and remembers what it was told; `audit_rules` judge that.
"""
