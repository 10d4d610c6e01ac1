"""`p2pcompute programs`: what could be allowed here, and what it is pinned to."""

from __future__ import annotations

import click

from ._shared import common_options, json_line

__all__ = ["programs"]


@click.command(
    epilog="""\b
Examples:
  p2pcompute programs
  p2pcompute programs --json
  p2pcompute up --allow-program tiny-learner:infer

None is run for others until it is allowed. With --json each is an object on a line of its own.
"""
)
@common_options
def programs(as_json: bool, debug: bool) -> None:
    """List the programs that are installed here, with version and digest of their files."""
    del debug
    from p2pcompute.execution._program_files import InstalledProgram, installed_programs

    found = installed_programs()
    for program in found:
        if isinstance(program, InstalledProgram):
            facts = {
                "name": program.name,
                "distribution": program.distribution,
                "version": program.version,
                "digest": program.digest.hex(),
            }
            if as_json:
                json_line(**facts)
            else:
                click.echo(f"{program.label}  {program.version}  {facts['digest']}")
        elif as_json:
            json_line(error=str(program))
        else:
            click.echo(f"can't be used: {program}", err=True)
    if not found and not as_json:
        click.echo("no installed distribution has programs; docs/programs.md says how one declares them", err=True)
