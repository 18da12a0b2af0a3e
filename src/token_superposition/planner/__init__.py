"""`tst plan`: what a run would cost with and without superposition, before money is spent.

From the bottom up: `amounts` (10B, 1.5T), `hardware` (peaks and list prices), `measured` (what was measured so far, as
package data), `expectation` (from that, a range for the run in question), `shapes` (a model for a parameter count),
`subject` (what is planned: model, batch, corpus), `speed` (seconds a step: from MFU, from a run's hours, from a pilot),
`advice` (bag size, ratio, slot weights, or none, each with its reasons), `forecast` (steps, FLOPs, tokens, hours, cost;
puts all of it together), `report` (for people), `run_file` (the YAML).

No figure of what superposition saves is written into the code: each comes from the tables in `evidence/`, and where
these have nothing near, the plan says so and gives none. Numbers of steps and tokens come from the same `Schedule` that
a run is trained by.
"""
