def first_output(out, channels):
    out = getattr(out, "sample", out)
    return out
