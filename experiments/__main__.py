"""What makes the numbers of the README. What is there is skipped; what a kill interrupts resumes."""

import argparse
import sys
from importlib import import_module

from experiments import UserError


class Parser(argparse.ArgumentParser):
    """One that tells a mistake in one line."""

    def error(self, message):
        """Say it, and how to learn more."""
        self.exit(2, f"{self.prog}: error: {message} (--help says more)\n")


def whole(text, least=0):
    """Return a whole number of at least `least`."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} must be at least {least}")
    return number


def positive(text):
    """Return a whole number of at least 1."""
    return whole(text, least=1)


def parse(arguments):
    """Return the options of the command line."""
    parser = Parser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, text, run=write):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def add_workers(to):
        to.add_argument("--jobs", type=positive, help="processes, of one thread each; by default one for each core")
        to.add_argument("--scheduler", help="address of a Dask scheduler whose workers are used instead")

    ssl = command("ssl", "the semi-supervised comparison: every method × number of labels × draw of labels", run_ssl)
    ssl.add_argument("--data", default="mnist", choices=("mnist", "fashion-mnist"))
    ssl.add_argument("--methods", nargs="+", help="all, with their variants, unless some are named")
    ssl.add_argument("--labels", nargs="+", type=positive, help="by default 100 600 1000 3000; variants only with 100")
    ssl.add_argument("--splits", nargs="+", type=whole, help="draws of labels, by their seeds; by default 0 1 2 3 4")
    add_workers(ssl)
    m1 = command("m1", "the runs of M1", run_m1)
    m1.add_argument("names", nargs="*", help="runs, or groups of them such as toy or variance-free; all by default")
    add_workers(m1)
    command("table", "write the tables of docs/ and their figure, from what is in results/")
    command("meaning", "draw what y means in M2's plain recipe as it trains, from models that it left")
    notebooks = command("notebooks", "run notebooks top to bottom, and rewrite them and their figures", run_notebooks)
    notebooks.add_argument("paths", nargs="+", metavar="notebook")
    command("weights", "write the models that come with the package, in half precision, from what is trained")
    command("page", "write docs/index.html from the models that come with the package")
    bench = command("bench", "throughput, memory, distance from the machine's limit, beside pythae and Pyro", run_bench)
    either = bench.add_mutually_exclusive_group()
    either.add_argument("--answer", action="store_true", help="instead, test error against CPU minutes of training")
    either.add_argument("--scaling", action="store_true", help="instead, how cost grows, in CPU seconds of one thread")
    return parser.parse_args(arguments)


def run_ssl(options):
    """Complete the semi-supervised comparison."""
    from experiments import runner, ssl

    cells = ssl.cells_of(options.methods, options.labels or ssl.LABELS, options.splits or ssl.SPLITS)
    ssl.run(options.data, cells, options.jobs, options.scheduler, runner.RESULTS, runner.STATE)


def run_m1(options):
    """Complete the runs of M1."""
    from experiments import m1, runner

    names = dict.fromkeys(run for name in options.names or m1.GROUPS for run in m1.runs_of(name))
    jobs = m1.jobs(names)
    for data in {job.config.data for job in runner.missing_jobs(jobs, runner.RESULTS)} - {m1.TOY}:
        runner.load_data(data)
    with runner.workers(options.jobs, options.scheduler) as parallel:
        runner.run_jobs(jobs, parallel, runner.RESULTS, runner.STATE)


def run_notebooks(options):
    """Run notebooks and rewrite them."""
    from experiments import execute

    execute.run(options.paths)


def run_bench(options):
    """Measure what the options say."""
    if options.answer:
        from experiments.bench.answer import answer

        return answer()
    from experiments.bench.run import bench, scaling

    return scaling() if options.scaling else bench()


def write(options):
    """Call what the module of that name writes."""
    import_module(f"experiments.{options.command}").write()


def main(arguments=None):
    """Parse the command line and run; a mistake is told in one line, and ends with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows only ASCII gets "?" for "×"
    options = parse(arguments)
    from vae.checkpoint import OtherRunError

    try:
        options.run(options)
    except (UserError, OtherRunError, OSError) as error:
        told = " ".join(str(error).split())
        print(f"python -m experiments {options.command}: error: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
