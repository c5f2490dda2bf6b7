"""What `python -m benchmarks` measures, in full or as a smoke run: groups of cases that take turns."""

from dataclasses import dataclass
from itertools import product

from benchmarks.steps import PEERS, Case, installed

THREADS = 2  # for all that is not measured with 1 as well


@dataclass(frozen=True)
class Plan:
    """Sizes. `batch` is that of the ratios, `large_batch` that of those of the top-k estimate."""

    batches: tuple
    batch: int
    large_batch: int
    rounds: int
    seconds: float  # for each case in each round, at least one step
    product_size: int
    copy_mib: int
    scaling: tuple  # of what grows, the step, its batch, and the values

    def grid(self, only, dtypes):
        """Return pairs of a number of threads and the cases that take turns: all of one batch size.

        Peers stand beside fp32 and bf16, themselves in fp32, on 2 threads.
        """
        groups = []
        for threads, batch in product((THREADS, 1), self.batches):
            cases = [Case(what, batch, dtype) for dtype in dtypes for what in only if installed(what)]
            beside = PEERS if threads == THREADS else ()
            groups += [(threads, [c for c in cases if c.what not in PEERS or (c.what in beside and c.dtype == "fp32")])]
        large = {case: None for pair in self.ratios().values() for case in pair if case.batch == self.large_batch}
        groups += [(THREADS, [case for case in large if case.what in only and installed(case.what)])]
        return [(threads, cases) for threads, cases in groups if cases]

    def gpu_grid(self, only):
        """The same on a GPU, without peers; M1 and exact M2 compiled as well, without and with CUDA graphs."""
        ours = [what for what in only if what not in PEERS]
        groups = []
        for dtype in ("fp32", "bf16"):
            groups += [(THREADS, [Case(what, n, dtype, "cuda") for what in ours]) for n in self.batches]
            compiled = [what for what in ours if what in ("m1", "m2_exact")]
            modes = ("default", "reduce-overhead")
            groups += [(THREADS, [Case(w, self.batch, dtype, "cuda", mode) for w in compiled for mode in modes])]
        return [(threads, cases) for threads, cases in groups if cases]

    def scaled_cases(self):
        """Return pairs of what grows and the cases of one step."""
        return [
            (name, [Case(what, **{"batch": batch, name: n}) for n in values])
            for name, what, batch, values in self.scaling
        ]

    def ratios(self):
        """Return pairs of cases whose times are compared: that of the second over that of the first."""
        m1, m1_bf16, m2, m2_bf16 = (Case(w, self.batch, d) for w in ("m1", "m2_exact") for d in ("fp32", "bf16"))
        pythae, pyro = (Case(what, self.batch) for what in ("pythae_m1", "pyro_m2"))
        topk, topk_bf16 = (Case("m2_topk", self.large_batch, dtype) for dtype in ("fp32", "bf16"))
        return {
            "m1_vs_pythae": (m1, pythae),
            "m1_bf16_vs_pythae": (m1_bf16, pythae),
            "m2_exact_vs_pyro": (m2, pyro),
            "m2_exact_bf16_vs_pyro": (m2_bf16, pyro),
            "m2_topk_vs_pyro": (topk, Case("pyro_m2", self.large_batch)),
            "m2_topk_bf16_vs_pyro": (topk_bf16, Case("pyro_m2", self.large_batch)),
        }


FULL = Plan(
    batches=(100, 500, 2000),
    batch=500,
    large_batch=1000,
    rounds=5,
    seconds=0.25,
    product_size=1024,
    copy_mib=256,
    scaling=(
        ("num_classes", "m2_exact", 100, (2, 5, 10, 20, 50, 100, 200)),
        ("num_classes", "m2_chunked", 100, (20, 50, 100, 200)),
        ("batch", "m1", 500, (20, 100, 500, 2000, 8000)),
        ("z_dim", "m1", 500, (2, 10, 50, 200, 1000)),
        ("num_samples", "iwae", 100, (1, 10, 100, 1000)),
    ),
)
SMOKE = Plan(
    batches=(20,),
    batch=20,
    large_batch=40,
    rounds=2,
    seconds=0.01,
    product_size=64,
    copy_mib=1,
    scaling=(("num_classes", "m2_exact", 4, (2, 4)), ("num_samples", "iwae", 4, (1, 3))),
)
