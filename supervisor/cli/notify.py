"""`memsup notify --test`: does a message reach you, and does the dead man's ping arrive?"""

from __future__ import annotations

import os
import time

import click

from memsup.shared.commands import command
from memsup.shared.descriptors import wait_ready
from memsup.shared.paths import run_paths
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.errors import RefusedError

ARRIVES_WITHIN_S = 60.0
REACHED, NOT_REACHED = 0, 1


@click.command(short_help="Send a test message and a ping.")
@run_option
@json_option
@click.option("--test", is_flag=True, help="Send them (the only thing that this command does).")
@click.option("--trust", is_flag=True, help="As for start.")
@click.option("--set", "flags", multiple=True, metavar="KEY=VALUE", help="A setting, such as notify.urls=…; may be repeated.")
def notify(run_name: str, as_json: bool, test: bool, trust: bool, flags: tuple[str, ...]) -> int:
    """Send a test message to notify.urls and fetch notify.ping_url once, and say what came of it.

    The settings are those that a run started here would have. Exit code: 0 all reached, 1 not, 2 nothing to send to.
    """
    from memsup.supervisor.client.preparing import load_settings
    from memsup.supervisor.client.trust import refuse_strangers
    from memsup.supervisor.tell.messenger import Messenger
    from memsup.supervisor.tell.policy import trial_notice

    if not test:
        raise RefusedError("Say memsup notify --test to send a test message.")
    run_paths(run_name)  # which refuses what is no name, as any command does
    loaded = load_settings(tier=None, assignments=flags, environment=os.environ)
    if not trust:
        refuse_strangers(loaded, None, command("notify", run_name) + " --test")
    wanted = loaded.settings.notify
    if not wanted.urls and not wanted.ping_url:
        raise RefusedError("Neither notify.urls nor notify.ping_url is set. See docs/overnight.md.")
    messenger = Messenger(wanted.urls, wanted.ping_url)
    messenger.start(time.monotonic())
    expected = bool(wanted.urls) + bool(wanted.ping_url)
    messenger.send(trial_notice(run_name), retry=False)
    messenger.ping()
    came, deadline_s = messenger.answers(), time.monotonic() + ARRIVES_WITHIN_S
    while len(came) < expected and (left_s := deadline_s - time.monotonic()) > 0 and messenger.fd is not None:
        wait_ready([messenger.fd], min(1.0, left_s))
        came += messenger.answers()
    messenger.close()
    reached = len(came) == expected and all(sent.ok for sent in came)
    if as_json:
        answers = [{"ping": sent.ping, "ok": sent.ok, "text": sent.text} for sent in came]
        json_data({"schema": 1, "reached": reached, "answers": answers})
        return REACHED if reached else NOT_REACHED
    for sent in came:
        (data if sent.ok else message)(f"{'ping' if sent.ping else 'message'}: {sent.text}")
    if len(came) < expected:
        message(f"No word within {ARRIVES_WITHIN_S:.0f} s: the network may be down.")
    return REACHED if reached else NOT_REACHED
