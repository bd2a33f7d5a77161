"""python -m fastdiff, and the command `fastdiff`."""

from fastdiff.cli.stop import ignore, quit_at_once


def run() -> None:
    """The command. While its modules are imported a signal ends it at once; when it has ended, none counts."""
    quit_at_once()
    from fastdiff.cli.main import main

    try:
        main(prog_name="fastdiff")
    finally:
        ignore()


if __name__ == "__main__":
    run()
