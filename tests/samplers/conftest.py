"""What a table means, in NumPy and float64, independent of every kernel."""

import numpy as np
import pytest


def run_table(table, network, x, noise=None, clip=None, variance=None):
    """The equations at the top of table.py, row by row; x is the start, without init_noise_sigma.

    Args:
        table: a StepTable.
        network: (x, time) → its output.
        x: an array, or a number.
        noise: row → its noise, asked for only where the row has some.
        clip: a bound, or None.
        variance: (x, time) → the second output of one with learned variance.
    """
    remembered = []
    for i, time in enumerate(table.time):
        p, q, a, b, c, s, o, d, e, u, v, S = table.rows[i]
        out = network(x, time)
        x0 = p * x + q * out
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        after = a * x + b * x0 + o * out
        for weight, m in zip((c, d, e), remembered, strict=False):
            after = after + weight * m
        remembered = [u * x + v * x0, *remembered[:2]]
        if s:
            share = 0.0 if variance is None else (variance(x, time) + 1) / 2
            after = after + s ** (1 - share) * S**share * noise(i)
        x = after
    return x


@pytest.fixture(scope="session")
def run():
    return run_table
