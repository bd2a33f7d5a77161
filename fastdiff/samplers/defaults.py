"""How images are sampled unless told otherwise; a module of its own, for the command line to read without torch."""

# What bench.quality found nearest to the data at its number of steps, on both shipped models (README, "Which sampler"):
# noise undoes errors that a deterministic sampler carries to the end (Karras et al. 2022, section 4).
SAMPLER, STEPS = "dpmpp_2m_sde", 25
