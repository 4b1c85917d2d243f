"""The commands by name: imports the one that is called, and says what is wrong with how it was called.

The help page has to come at once, so each command's module is imported only when it runs. What the commands do is in the
modules named below.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.exceptions import NoArgsIsHelpError, NoSuchOption

from memsup.supervisor.cli import INTERRUPTED, as_document
from memsup.supervisor.cli.screen import data, message
from memsup.supervisor.client.errors import REFUSED

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The order of the help page. Module, what the command is called in it, and the one line on the help page (so that it need not
# import them all).
COMMANDS = {
    "start": ("start", "start", "Start or continue a run in the background."),
    "init": ("init", "init", "Write a memsup.toml for the data in this folder."),
    "status": ("status", "status", "Show state, progress, limits and the last action."),
    "list": ("runs", "list_runs", "All runs, with what they take of the disk."),
    "pause": ("orders", "pause", "Pause; with --release give memory back, too."),
    "resume": ("orders", "resume", "Continue the same curve after a pause."),
    "checkpoint": ("checkpoint", "checkpoint", "Write a checkpoint now; list or verify them."),
    "stop": ("orders", "stop", "Checkpoint and stop."),
    "wait": ("wait", "wait", "Wait until the run ends, with its progress."),
    "predict": ("predict", "predict", "Ask the model that a run has made."),
    "export": ("export", "export", "Write the model into a folder; adapters merged with --merge."),
    "logs": ("logs", "logs", "Show the worker's output and the ledger of decisions."),
    "report": ("report", "report", "The night on one page, with plots."),
    "metrics": ("metrics", "metrics", "Tell Prometheus of all runs, on this machine."),
    "rm": ("runs", "rm", "Remove runs, with their checkpoints and models."),
    "notify": ("notify", "notify", "Send a test message and a ping."),
    "service": ("service", "service", "Begin a run at boot, and again when it dies (systemd)."),
    "check": ("check", "check", "What this machine has, and the tier it earns."),
    "drill": ("drill", "drill", "Rehearse a bad night on this machine in about two minutes."),
    "completion": ("completion", "completion", "Have the shell complete commands, runs and settings."),
}
GROUPS = {
    "Train": ("start", "init", "pause", "resume", "checkpoint", "stop"),
    "Look": ("status", "list", "wait", "logs", "report", "metrics"),
    "Use and tidy up": ("predict", "export", "rm"),
    "Prepare": ("check", "drill", "notify", "service", "completion"),
}
"""How the help page has them, each once."""
_ELSEWHERE = {"ls": "list", "ps": "list", "runs": "list", "remove": "rm", "delete": "rm", "train": "start", "run": "start"}
_ELSEWHERE |= {"kill": "stop", "log": "logs", "continue": "resume", "top": "status", "infer": "predict", "doctor": "check"}
"""What commands are called elsewhere that do the same."""

EXAMPLES = (
    ("memsup check", "what this machine has, and what it can do"),
    ("memsup start --demo", "train a small model on real reviews, supervised"),
    ("memsup status --watch", "look at it"),
)


class LazyGroup(click.Group):
    """Imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        name, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"memsup.supervisor.cli.{name}"), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = _ELSEWHERE.get(name) or next(iter(get_close_matches(name, COMMANDS, n=1)), None)
            raise click.UsageError(f"No such command {name!r}." + (f" Did you mean {near!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Click's own would import every command for its one line."""
        from click.shell_completion import CompletionItem

        commands = [CompletionItem(name, help=line) for name, (*_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_dl(EXAMPLES)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, COMMANDS))  # one column for all
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name][-1]) for name in names])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        data(f"memsup {version('memsup')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def memsup() -> None:
    """Fine-tune transformers on the machine you own, and find it alive in the morning."""


def called(arguments: Sequence[str]) -> int:
    """Runs the command that is named; returns its exit code. Raises what the command raises."""
    try:
        code = memsup.main(arguments, prog_name="memsup", standalone_mode=False)
    except click.UsageError as error:
        as_document(arguments, error.format_message())
        return _misused(error)
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _misused(error: click.UsageError) -> int:
    if isinstance(error, NoArgsIsHelpError):  # a group alone: its text is the whole help page
        message(*error.format_message().split("\n"))
        return REFUSED
    if isinstance(error, NoSuchOption):
        from memsup.shared import other_names

        if (advice := other_names.told(error.option_name)) is not None:
            message(f"Error: There is no option {error.option_name}. {advice}{_way_in(error.option_name)}")
            return REFUSED
    if error.ctx is not None:
        message(*error.ctx.get_usage().split("\n"), f"Try '{error.ctx.command_path} --help' for help.", "")
    message(f"Error: {error.format_message()}")
    return REFUSED


def _way_in(option: str) -> str:
    """What to type for an option that is called otherwise here; nothing for what memsup has no setting for."""
    from memsup.shared import other_names
    from memsup.supervisor.cli.options import FLAGS

    if (setting := other_names.setting_for(option)) is None:
        return ""
    flag = next((f"{flag.option} {flag.metavar}" for flag in FLAGS if flag.setting == setting), f"--set {setting}=…")
    return f" Write: {flag}"
