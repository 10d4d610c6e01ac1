"""The `p2pcompute` command. Only click is imported until a command runs, so that help comes at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import click

import p2pcompute

from ._shared import Failure

__all__ = ["cli", "main"]

_COMMANDS: Final = {
    "up": ("p2pcompute_cli._up", "up", "Lend this machine: run a provider until Ctrl-C."),
    "run": ("p2pcompute_cli._run", "run", "Run a Python script that uses p2p.run, and show its progress."),
    "status": ("p2pcompute_cli._status", "status", "Show what the running node does, earns and is owed."),
    "peers": ("p2pcompute_cli._peers", "peers", "Show who the running node is connected to."),
    "drain": ("p2pcompute_cli._status", "drain", "Have the running node take no more work."),
    "wallet": ("p2pcompute_cli._wallet", "wallet", "Show where this profile's money lies, and whose it is."),
    "channels": ("p2pcompute_cli._money", "channels", "Show the payment channels."),
    "earnings": ("p2pcompute_cli._money", "earnings", "Show what was earned, by who paid it."),
    "receipts": ("p2pcompute_cli._money", "receipts", "List the receipts of chunks that were done here or for us."),
    "settle": ("p2pcompute_cli._money", "settle", "Claim on chain what our vouchers are worth."),
    "fund": ("p2pcompute_cli._money", "fund", "Bring tokens into the hub, for channels."),
    "withdraw": ("p2pcompute_cli._money", "withdraw", "Take what is free at the hub out of it."),
    "close": ("p2pcompute_cli._close", "close", "Close a payment channel, and get back what is left on it."),
    "stake": ("p2pcompute_cli._stake", "stake", "Put money at stake, or show where the stake stands."),
    "unstake": ("p2pcompute_cli._stake", "unstake", "Ask for the stake back, or bring it home."),
    "arbiter": ("p2pcompute_cli._arbiter", "arbiter", "Judge evidence of lies, for a stake of your own."),
    "accuse": ("p2pcompute_cli._arbiter", "accuse", "Have a liar's stake taken."),
    "chain": ("p2pcompute_cli._chain", "chain", "Use any EVM chain: deploy the hub, compare one."),
    "programs": ("p2pcompute_cli._programs", "programs", "List the programs that are installed here."),
    "evidence": ("p2pcompute_cli._evidence", "evidence", "Check files that show who lied, and list those kept here."),
    "bench": ("p2pcompute_cli._bench", "bench", "Measure this machine as its ad will say it."),
    "doctor": ("p2pcompute_cli._doctor", "doctor", "Check this machine, and say what to do about what is missing."),
}
# What is known to come with a plug-in, so that the list of commands needs none of their code.
_PLUGIN_HELP: Final = {
    "testnet": "Run many nodes on this machine.",
    "demo": "Render a picture on a market of its own, with a cheat and a crash in it.",
}
_GROUP: Final = "p2pcompute.commands"


class _LazyGroup(click.Group):
    """Loads a command's module when the command is used."""

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=_GROUP) if point.name not in _COMMANDS}

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*_COMMANDS, *sorted(self._plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name in _COMMANDS:
            module, attribute, _ = _COMMANDS[cmd_name]
            command = getattr(import_module(module), attribute)
        else:
            point = self._plugins().get(cmd_name)
            if point is None:
                return None
            try:
                command = point.load()
            except (ImportError, AttributeError) as exc:
                raise click.ClickException(f"the command {cmd_name} of {point.value} can't be loaded: {exc}") from exc
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        rows = [(name, text) for name, (_, _, text) in _COMMANDS.items()]
        rows += [
            (name, _PLUGIN_HELP.get(name, f"From {point.value.partition(':')[0]}."))
            for name, point in sorted(self._plugins().items())
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Files lie under P2PCOMPUTE_HOME [~/.local/share/p2pcompute]. `p2pcompute COMMAND --help` has examples.",
)
@click.version_option(p2pcompute.__version__, "-V", "--version", prog_name="p2pcompute")
def cli() -> None:
    """A peer-to-peer market of compute: lend this machine, or have kernels run on others'.

    \b
      p2pcompute doctor            # is this machine fit?
      p2pcompute up                # lend it; a local network is made on first use
      p2pcompute run saxpy.py      # in another terminal: run a script on that network
    """


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit code. Usage errors are 2, Ctrl-C is 130, each kind of error has its own code."""
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="p2pcompute", standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except Failure as exc:
        exc.show()
        return exc.code
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
