"""What several commands share: `--run`, `--json`, the folders of a run, and the settings that have an option of their own. How
they print is in `screen.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from memsup.shared.commands import DEFAULT_RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence


def run_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """The runs whose names begin so, for a shell that completes a word."""
    from memsup.supervisor.client.runs import all_runs

    return [paths.name for paths in all_runs() if paths.name.startswith(incomplete)]


def setting_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The settings whose names begin so, each with the sign behind which its value comes."""
    from memsup.shared.settings import keys

    return [f"{name}=" for name in keys() if name.startswith(incomplete)]


def checkpoint_paths(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The checkpoints in the run's own folder."""
    from memsup.shared.paths import run_paths

    folder = run_paths(ctx.params.get("run_name") or DEFAULT_RUN).checkpoints
    names = sorted(os.listdir(folder), reverse=True) if folder.is_dir() else []
    paths = [str(folder / name) for name in names if not name.startswith(".")]
    return [path for path in paths if path.startswith(incomplete)] or [
        path for path in paths if os.path.basename(path).startswith(incomplete)
    ]


run_option: Callable[[Any], Any] = click.option(
    "--run",
    "run_name",
    default=DEFAULT_RUN,
    metavar="NAME",
    help="Which run.",
    show_default=True,
    shell_complete=run_names,
)
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


class Flag(NamedTuple):
    """A setting that is given so often that it has an option of its own."""

    option: str
    setting: str
    metavar: str
    help: str
    spellings: tuple[str, ...] = ()
    """What it is called elsewhere, which is understood as well."""

    @property
    def argument(self) -> str:
        return self.option.removeprefix("--").replace("-", "_")


FLAGS = (
    Flag("--model", "task.model", "MODEL", "A model's folder, or its id at a hub.", ("--model-name", "--model-name-or-path")),
    Flag("--train", "task.train", "DATA", "A file, a pattern in quotes, or a folder.", ("--train-file",)),
    Flag("--eval", "task.eval", "DATA", "The same for evaluation.", ("--eval-file", "--validation-file")),
    Flag("--epochs", "training.epochs", "N", "How often each sample is seen.", ("--num-epochs", "--num-train-epochs")),
    Flag("--batch-size", "training.effective_batch", "N", "Samples of a step, whatever the memory does."),
    Flag("--max-length", "training.max_length", "N", "Tokens at which a text is cut.", ("--max-seq-length",)),
    Flag("--learning-rate", "training.learning_rate", "X", "At its highest.", ("--lr",)),
    Flag("--device", "training.device", "DEVICE", "auto, cpu, cuda or cuda:N."),
    Flag(
        "--ranks",
        "training.ranks",
        "N",
        "Processes that compute a step together, each on a GPU, or on CPUs.",
        ("--nproc-per-node",),
    ),
    Flag("--nodes", "nodes.count", "N", "Machines that compute a step together; this one is the first.", ("--nnodes",)),
    Flag("--join", "nodes.join", "ADDRESS[:PORT]", "Compute a part of each step for the run of that first machine."),
    Flag("--resume-from-checkpoint", "checkpoint.resume_from", "FOLDER", "A checkpoint to begin from."),
)
_SPELLINGS = {spelling: flag.option for flag in FLAGS for spelling in flag.spellings}
_NOT_IN_HELP = {"--resume-from-checkpoint"}


def flag_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command an option for each of `FLAGS`, whose value comes as text, and two more that training scripts have."""
    command = click.option("--use-amp", is_flag=True, hidden=True)(command)
    command = click.option("--gradient-accumulation-steps", "accumulation", type=click.IntRange(1), hidden=True)(command)
    for flag in reversed(FLAGS):
        hidden = flag.option in _NOT_IN_HELP
        command = click.option(flag.option, flag.argument, metavar=flag.metavar, help=flag.help, hidden=hidden)(command)
    return command


def settings_of_flags(
    flags: Mapping[str, str | None], assignments: Sequence[str], accumulation: int | None, *, is_command: bool
) -> tuple[str, ...]:
    """The options that are settings, as `--set` has them. Raises `click.UsageError` where two say different things, and where
    they are for a command, which has them of its own.
    """
    set_too = {assignment.partition("=")[0].strip() for assignment in assignments}
    given = []
    for flag in FLAGS:
        value = flags[flag.argument]
        if value is None:
            continue
        if flag.setting in set_too:
            raise click.UsageError(f"{flag.option} is {flag.setting}, which --set gives as well. Choose one.")
        if is_command and flag.setting != "training.device":
            raise click.UsageError(
                f"{flag.option} is for the built-in training; what your command takes stands behind the two dashes."
            )
        if flag.setting == "training.effective_batch" and accumulation is not None:
            value = _times(flag.option, value, accumulation)
        given.append(f"{flag.setting}={value}")
    if accumulation is not None and flags["batch_size"] is None:
        raise click.UsageError(
            "--gradient-accumulation-steps goes with --batch-size: a step has batch size × accumulation samples, and memsup "
            "cuts it by itself so that it fits."
        )
    return tuple(given)


def _times(option: str, value: str, accumulation: int) -> str:
    if not value.isdecimal():
        raise click.UsageError(f"{option} is {value!r}; write a whole number.")
    return str(int(value) * accumulation)


def mixed_precision(device: str | None) -> tuple[str, ...]:
    """What the usual `use_amp` means here: float16 on a GPU. On a CPU memsup chooses by itself what is faster there."""
    has_gpu = device != "cpu" and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
    return ("training.amp=fp16",) if has_gpu or (device or "").startswith("cuda") else ()


class TrainingCommand(click.Command):
    """A command whose options may be written as training scripts have them: `--batch_size 8 --num_train_epochs 3`. What comes
    after the first word that is no option belongs to a command of the user's own.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        more["context_settings"] = {**more.get("context_settings", {}), "allow_interspersed_args": False}
        super().__init__(*arguments, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        has_value = {name: not getattr(option, "is_flag", False) for option in self.params for name in option.opts}
        own: list[str] = []
        is_value = False
        for argument in args:
            if not is_value and (argument in {"-", "--"} or not argument.startswith("-")):
                break
            own.append(argument if is_value else _as_known(argument, has_value))
            is_value = not is_value and has_value.get(own[-1], False)
        return super().parse_args(ctx, [*own, *args[len(own) :]])


def _as_known(argument: str, known: Container[str]) -> str:
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name in known:
        return argument
    spelt = name.replace("_", "-")
    spelt = _SPELLINGS.get(spelt, spelt)
    return spelt + equals + value if spelt in known else argument
