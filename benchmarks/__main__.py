"""Throughput, memory and distance from the machine's limit, beside pythae and Pyro: python -m benchmarks --help.

Writes results/bench.json and _images/throughput.png. With VAE_SMOKE=1 everything is tiny and goes to preview/smoke.
Numbers of one run belong together: its cases took turns. Those of two runs on a shared machine may not compare.
"""

import argparse
import os
from pathlib import Path

from benchmarks.plan import FULL, SMOKE, THREADS
from benchmarks.report import throughput
from benchmarks.run import Bench
from benchmarks.steps import PEERS, WHAT, installed
from vae.files import atomic_path
from vae.jobs import write_result


def main(arguments=None):
    """Measure, print the table, and, unless only some of it was measured, write the file and the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WHAT, help="measure only these, and write nothing")
    only = parser.parse_args(arguments).only
    smoke = os.environ.get("VAE_SMOKE") == "1"
    bench = Bench(SMOKE if smoke else FULL)
    for what in only or PEERS:
        if not installed(what):
            bench.leave_out(f"{what}: {PEERS[what]} is missing; pip install -r requirements-bench.txt")
    bench.grid(only or WHAT)
    result = bench.result({} if only else bench.scaling())
    print(*(f"{name}: {value:.3g}" for name, value in result["ratios"].items()), sep="\n")
    if not only:
        write(result, bench.plan, Path("preview/smoke") if smoke else None)


def write(result, plan, folder):
    """Write the result, and the figure, to their places or to `folder`."""
    write_result(result, "bench", folder or Path("results"))
    figure = throughput(result["measurements"], plan.batches, THREADS)
    with atomic_path((folder or Path("_images")) / "throughput.png") as partial:
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
