"""`tst plan`: what a run costs with and without superposition, and what was measured near it.

From the bottom up: `amounts` parses 10B or $5,000; `measured_runs` reads the tables in `evidence/`; `shapes` gives a
model for a parameter count; `workload` is the model, batch and corpus; `hardware` has peaks, prices and the MFU;
`advice` finds the nearest measured runs and from them a setting, a range and a verdict; `plan` puts all together and
`plan_text` writes it for people.

No figure of what superposition saves is in the code. Each comes from a measured run near the planned one. If there is
none, the plan says so.
"""
