"""`tst bench`: what a step costs at each bag size, and the largest micro-batch that fits."""
