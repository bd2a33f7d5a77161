"""What a row of a step table holds, as denoise_step and its kernel in C take it; see samplers.table."""

COLUMNS = 12  # p, q, a, b, c, s, o, d, e, u, v, S
DEPTH = 3  # how many rows back what was remembered is used at most
