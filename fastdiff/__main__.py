"""python -m fastdiff."""

from fastdiff.cli import main

main(prog_name="fastdiff")
