"""A rank that says which signals it gets: ends with 75 at the one argv[2] names, or with 0 after argv[1] seconds."""

import os
import signal
import sys
import time

last = signal.Signals[sys.argv[2]]
told = []


def heard(number, frame):
    told.append(number)
    os.write(1, f"rank {os.environ['SLURM_PROCID']} {signal.Signals(number).name}\n".encode())


for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, heard)
os.write(1, f"rank {os.environ['SLURM_PROCID']} ready\n".encode())
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and last not in told:
    time.sleep(0.02)
sys.exit(75 if last in told else 0)
