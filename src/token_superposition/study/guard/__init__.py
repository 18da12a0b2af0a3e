"""`tst train --guard`: whether superposition will have paid by the end, said early in the recovery.

From the bottom up: `forecast` (from the guards' losses and the baseline's, the gap at the end and a probability; pure
arithmetic), `baseline` (the curve that a run is held against, and whether it may be), `schedule` (at which steps, at
what cost), `run` (trains the run, its guards' branches, and decides).

A guard is a short run that leaves the guarded one early in its recovery and decays at once. Without the decay its loss
could not be held against the baseline's: a run at full learning rate stands above its own end by more than
superposition gains.
"""
