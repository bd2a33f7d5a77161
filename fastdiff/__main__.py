"""python -m fastdiff."""

from fastdiff.cli.main import main

main(prog_name="fastdiff")
