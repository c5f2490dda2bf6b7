"""What makes the numbers of README and docs/. What is there is skipped; what a kill interrupts resumes."""

import argparse
import sys

from experiments import UserError


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
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, text):
        return commands.add_parser(name, help=text, description=text)

    ssl = command("ssl", "the semi-supervised comparison: every method × number of labels × draw of labels")
    ssl.add_argument("--data", default="mnist", choices=("mnist", "fashion-mnist"))
    ssl.add_argument("--methods", nargs="+", help="unless some are named, the comparison and its ablations")
    ssl.add_argument("--labels", nargs="+", type=positive, help="by default 100 600 1000 3000; ablations only with 100")
    ssl.add_argument("--splits", nargs="+", type=whole, help="draws of labels, by their seeds; by default 0 1 2 3 4")
    m1 = command("m1", "the runs of M1")
    m1.add_argument("names", nargs="*", help="runs, or groups of them such as toy or variance-free; all by default")
    own = command("own", "the guarded estimator of M2 beside scikit-learn's methods, on tables and images")
    own.add_argument("--data", nargs="+", help="data sets; all by default")
    own.add_argument("--splits", nargs="+", type=whole, help="draws, by their seeds; by default 6 … 18")
    for training in (ssl, m1, own):
        training.add_argument(
            "--jobs", type=positive, help="processes, of one thread each; by default one for each core"
        )
        training.add_argument("--scheduler", help="address of a Dask scheduler whose workers are used instead")
    command("table", "write the tables and numbers of README and docs/, and their figures, from results/")
    notebooks = command("notebooks", "run notebooks top to bottom, and rewrite them and their figures")
    notebooks.add_argument("paths", nargs="+", metavar="notebook")
    command("weights", "write the models that come with the package, in half precision, as trained")
    command("page", "write docs/index.html from the models that come with the package")
    bench = command("bench", "throughput, M2's beside Pyro, and what training costs as sizes grow")
    bench.add_argument("--answer", action="store_true", help="instead, test error against CPU minutes of training")
    return parser.parse_args(arguments)


def run(options):
    """Run a command; each imports only what it needs."""
    if options.command == "ssl":
        from experiments import runner, ssl

        cells = ssl.cells_of(options.methods, options.labels or ssl.NUM_LABELED, options.splits or ssl.SPLITS)
        ssl.run(options.data, cells, options.jobs, options.scheduler, runner.RESULTS, runner.STATE)
    elif options.command == "m1":
        from experiments import data, m1, runner

        names = dict.fromkeys(run for name in options.names or m1.GROUPS for run in m1.runs_of(name))
        jobs = m1.jobs(names)
        for name in {job.config.data for job in runner.missing_jobs(jobs, runner.RESULTS)} - {m1.TOY}:
            data.load_data(name)
        with runner.workers(options.jobs, options.scheduler) as parallel:
            runner.run_jobs(jobs, parallel, runner.RESULTS, runner.STATE)
    elif options.command == "own":
        from experiments import own, runner

        own.run(options.data, options.splits, options.jobs, options.scheduler, runner.RESULTS, runner.STATE)
    elif options.command == "notebooks":
        from experiments import execute

        execute.run(options.paths)
    elif options.command == "bench":
        from experiments.bench.answer import answer
        from experiments.bench.run import bench

        answer() if options.answer else bench()
    else:
        from experiments import page, table, weights

        {"table": table, "weights": weights, "page": page}[options.command].write()


def main(arguments=None):
    """Parse the command line and run; a mistake is told in one line, and ends with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows only ASCII gets "?" for "×"
    options = parse(arguments)
    from vae.checkpoint import OtherRunError

    try:
        run(options)
    except (UserError, OtherRunError, OSError) as error:
        told = " ".join(str(error).split())
        print(f"python -m experiments {options.command}: error: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
