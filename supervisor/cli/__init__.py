"""The command line: names its commands, imports the one that is called, and turns its outcome into an exit code.

`memsup --help` and `memsup status` have to answer at once, so nothing is imported here but click and what prints
(`screen.py`), and each command's module only when it runs. Data goes to stdout, messages to stderr. What the commands do is
in the modules named below.
"""

from __future__ import annotations

import atexit
import gc
import os
import resource
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.exceptions import NoArgsIsHelpError, NoSuchOption

from memsup.supervisor.cli import streams
from memsup.supervisor.cli.screen import data, guard, json_data, message
from memsup.supervisor.client.errors import REFUSED, RefusedError

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
INTERRUPTED = 130
_ALLOCATIONS = 100_000
"""Python looks for garbage after so many objects more, not after 700, as it would a hundred times among what imports make."""
LEAST_DESCRIPTORS = 72
"""What a supervisor needs (`room_for_peers` of its sockets): who has fewer is told so before anything is written."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. With `arguments` it returns the exit code; without, as the program `memsup`, it ends the process with it,
    unless threads are still at work. Data is on stdout by then, messages are on stderr.
    """
    if arguments is None:  # else the process is somebody else's, whose garbage may hold files
        gc.set_threshold(_ALLOCATIONS)
    streams.take_over()
    guard()
    os.umask(os.umask(0o077) & 0o077)  # what memsup makes, and whom it starts, is never closed to its own user
    code = _run(sys.argv[1:] if arguments is None else arguments)
    streams.say_what_is_lost()
    if arguments is None and all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)  # to take modules and objects down one by one takes a fifth of a `status`
    return code


def _run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code, which is also true where what was printed did not get out."""
    try:
        _check_surroundings(arguments)
        code = memsup.main(arguments, prog_name="memsup", standalone_mode=False)
    except click.UsageError as error:
        _as_document(arguments, error.format_message())
        return _misused(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except streams.OutputLostError as error:
        return error.code
    except Exception as error:
        return _refusal(error, arguments)
    return code if isinstance(code, int) else 0


def _check_surroundings(arguments: Sequence[str]) -> None:
    """Raises `RefusedError` for what no command could work with."""
    for argument in arguments:
        if not argument.isascii():
            from memsup.shared.paths import is_text

            if not is_text(argument):
                raise RefusedError(f"The argument {argument!r} is not UTF-8 text: rename the file, or write it in UTF-8.")
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= descriptors < LEAST_DESCRIPTORS:
        raise RefusedError(
            f"Only {descriptors} files may be open at a time here, and memsup needs {LEAST_DESCRIPTORS}: "
            "raise the limit with ulimit -n 1024."
        )


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


def _as_document(arguments: Sequence[str], text: str, more: Iterable[str | tuple[str, ...]] = ()) -> None:
    """Says to a program that asked for a document why it gets no other one."""
    own = arguments.index("--") if "--" in arguments else len(arguments)
    if "--json" in arguments[:own] and streams.is_silent():
        lines = [line if isinstance(line, str) else "  ".join(line) for line in more]
        json_data({"schema": 1, "ok": False, "error": text, "more": lines})


def _refusal(error: Exception, arguments: Sequence[str]) -> int:
    """Errors whose text was written for people are shown as it is; all others are bugs and keep their traceback."""
    from memsup.shared.data.errors import InputError
    from memsup.shared.paths import PathError
    from memsup.shared.record import RecordError
    from memsup.shared.settings import SettingsError

    if not isinstance(error, RefusedError | InputError | PathError | RecordError | SettingsError):
        raise error
    more = error.more if isinstance(error, RefusedError | SettingsError) else ()
    _as_document(arguments, str(error), more)
    message(f"memsup: {error}", *more)
    return error.code if isinstance(error, RefusedError) else REFUSED
