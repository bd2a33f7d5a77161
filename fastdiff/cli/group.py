"""Groups of commands."""

from __future__ import annotations

from typing import Any

import click

from fastdiff.errors import unknown_name


class Group(click.Group):
    """Refuses an unknown command in one sentence, as all other bad input is."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        known = self.list_commands(context)
        if args[0] not in known and not args[0].startswith("-") and not context.resilient_parsing:
            raise unknown_name("command", args[0], known)
        return super().resolve_command(context, args)
