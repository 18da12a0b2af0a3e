"""`tst bench`: the time and memory of a step at each bag size, and the largest micro-batch that fits."""
