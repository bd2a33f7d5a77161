"""What fastdiff is compared with: the published systems, other libraries, and how each calls a network."""
