"""One model, prepared once, sampled many times."""
