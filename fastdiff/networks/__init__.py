"""The two networks that fastdiff trains and serves; any other nn.Module fits in a Model too."""
