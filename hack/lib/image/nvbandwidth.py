#!/usr/bin/python3
"""Stands in for nvbandwidth where GPUs are simulated: succeeds where every rank could use every other's memory.

As nvbandwidth, it is started once for each GPU, prints a matrix of ranks, and fails as a whole where one pair fails.
Of its options only `--testSamples` has an effect: so often it looks, once a second.
"""

import argparse
import socket
import subprocess
import sys
import time

from mpi4py import MPI

PATIENCE = "5s"  # until the other node's server listens
WIDTH = 8


def main() -> int:
    options = argparse.ArgumentParser(allow_abbrev=False)
    options.add_argument("--testSamples", type=int, default=1)
    options.add_argument("-t", dest="test", required=True)
    given, _ = options.parse_known_args()
    ranks = MPI.COMM_WORLD
    host = socket.gethostname()
    number = ranks.Split_type(MPI.COMM_TYPE_SHARED).rank
    server = subprocess.Popen(["fabric-test", "serve"]) if number == 0 else None
    addresses = ranks.allgather(socket.gethostbyname(host))
    lines = ranks.gather(f"Process {ranks.rank} ({host}): {name_gpu(number)}")
    if ranks.rank == 0:
        print(*lines, f"Running {given.test}.", sep="\n", flush=True)
    for sample in range(given.testSamples):
        time.sleep(min(sample, 1))
        faults = {address: share_with(address) for address in sorted(set(addresses))}
        for fault in filter(None, faults.values()):
            print(fault, file=sys.stderr, flush=True)
        failed = ranks.allreduce(any(faults.values()), MPI.LOR)
        if failed:
            break
    cells = ["FAIL" if faults[address] else "OK" for address in addresses]
    cells[ranks.rank] = "N/A"
    matrix = ranks.gather(cells)
    if ranks.rank == 0:
        print_matrix(matrix)
    if server:
        server.terminate()
    return int(failed)


def print_matrix(matrix: list[list[str]]) -> None:
    head = ["", *map(str, range(len(matrix)))]
    for row in [head, *([str(rank), *cells] for rank, cells in enumerate(matrix))]:
        print(*(f"{cell:>{WIDTH}}" for cell in row))


def name_gpu(number: int) -> str:
    """The one that is this rank's: they take those of their container in turn."""
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, text=True, check=True)
    return listed.stdout.splitlines()[number].strip()


def share_with(address: str) -> str:
    """Why no memory can be shared with the ranks there; "" where it can."""
    command = ["fabric-test", "-wait", PATIENCE, "connect", address]
    return subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True).stderr.strip()


if __name__ == "__main__":
    sys.exit(main())
