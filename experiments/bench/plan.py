"""What `python -m experiments bench` measures, in full or as a smoke run: groups of cases that take turns."""

from dataclasses import dataclass
from itertools import product

from experiments.bench.steps import DTYPES, PEERS, THREADS, Case


@dataclass(frozen=True)
class Plan:
    """Sizes, and the groups of those sizes; a group is a list of cases of one device and number of threads."""

    batches: tuple = (100, 500, 2000)
    batch: int = 500  # of the ratios
    large_batch: int = 1000  # of the ratios of the top-k estimate
    rounds: int = 5
    seconds: float = 0.25  # for each case in each round, at least one step
    scaling_rounds: int = 3
    scaling: tuple = (  # what grows, the steps, their batch, and the values
        ("num_classes", ("m2_exact", "m2_chunked", "m2_topk"), 100, (10, 100, 1000)),
        ("x_shape", ("m2_topk",), 100, ((784,), (1, 28, 28), (3, 32, 32), (3, 64, 64))),
        ("batch", ("m1",), 500, (20, 100, 500, 2000)),
        ("z_dim", ("m1",), 500, (2, 50, 200, 1000)),
        ("num_samples", ("iwae",), 100, (1, 10, 100)),
    )

    def pairs(self):
        """Return the pairs of cases whose times are compared, ours and the peer's, by the name of their ratio."""
        pairs = [("m1", "pythae_m1", self.batch), ("m2_exact", "pyro_m2", self.batch)]
        pairs += [("m2_topk", "pyro_m2", self.large_batch)]
        return {
            f"{ours}{suffix}_vs_{PEERS[peer]}": (Case(ours, batch, dtype), Case(peer, batch))
            for ours, peer, batch in pairs
            for dtype, suffix in (("fp32", ""), ("bf16", "_bf16"))
        }

    def grid(self, what, dtypes):
        """Return groups of the steps `what`, each of one batch size.

        Peers stand beside fp32 and bf16, themselves in fp32, on 2 threads. The last group, of the large batch, has bf16
        whatever `dtypes` says.
        """
        groups = []
        for threads, batch in product((THREADS, 1), self.batches):
            ours = [Case(w, batch, dtype, threads=threads) for dtype in dtypes for w in what if w not in PEERS]
            groups.append(ours + [Case(w, batch) for w in what if w in PEERS and threads == THREADS])
        large = [c for pair in self.pairs().values() for c in pair if c.batch == self.large_batch and c.what in what]
        return [*groups, list(dict.fromkeys(large))]

    def gpu_grid(self, what):
        """The same on a GPU, without peers; M1 and exact M2 compiled as well, without and with CUDA graphs."""
        ours = [w for w in what if w not in PEERS]
        compiled = [w for w in ours if w in ("m1", "m2_exact")]
        groups = [(ours, batch, "eager") for batch in self.batches]
        groups += [(compiled, self.batch, mode) for mode in ("default", "reduce-overhead")]
        sizes = product(DTYPES, groups)
        return [[Case(w, batch, dtype, "cuda", mode) for w in names] for dtype, (names, batch, mode) in sizes]


SMOKE = Plan(
    batches=(20,),
    batch=20,
    large_batch=40,
    rounds=2,
    seconds=0.01,
    scaling_rounds=1,
    scaling=(("num_classes", ("m2_exact", "m2_topk"), 4, (2, 4)), ("x_shape", ("m2_topk",), 4, ((784,), (1, 5, 6)))),
)
