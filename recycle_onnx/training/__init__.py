"""Making the module: the torch model, its objective, its data and the loop that trains it. Needs the extra `train`."""

import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What says how torch's threads wait for each other: awake, or asleep. It counts when torch is imported first."""

if not any(name in os.environ for name in WAITING):
    # By default a thread waits awake for so long that another program's share of the cores is lost to both: with one
    # of two cores busy, steps took three times as long. A thousand rounds are some ten microseconds.
    os.environ["GOMP_SPINCOUNT"] = "1000"
