"""The command line: which verb is meant, its help, and how failures end. The verbs themselves are in :mod:`atonce.verbs`."""

from __future__ import annotations

import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence

import atonce
from atonce.core.commands import one_line, one_line_warnings, parse
from atonce.core.errors import AtonceError

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "train a digit generator here in three to four minutes and explain what was seen"),
    "train": ("train:train", "train a model on your images, or continue a run"),
    "sample": ("sample:sample", "generate images"),
    "edit inpaint": ("edit:inpaint", "make the masked pixels of a picture, keep all others"),
    "edit outpaint": ("edit:outpaint", "make what lies around a picture"),
    "edit colorize": ("edit:colorize", "give a grey picture colours"),
    "edit upscale": ("edit:upscale", "make a picture with more pixels"),
    "edit restore": ("edit:restore", "make what is not known: any combination of mask, grey and small"),
    "edit stroke": ("edit_noise:stroke", "turn a sketch into a picture"),
    "edit variations": ("edit_noise:variations", "make other pictures like one"),
    "edit local": ("edit_noise:local", "change a masked part of a picture, keep its coarse content"),
    "edit denoise": ("edit_noise:denoise", "take noise out of a picture"),
    "edit interpolate": ("edit_noise:interpolate", "make the pictures between two"),
    "eval": ("evaluate:evaluate", "measure a model against data"),
    "average": ("average:average", "make another average of a run's weights after the training"),
    "search": ("search:search", "find the time points at which a model samples best"),
    "bench quality": ("bench:bench_quality", "compare models: quality against network calls and seconds"),
    "bench compare": ("compare:bench_compare", "compare records, if they may be compared"),
    "inspect": ("inspect:inspect", "make a page that shows what a model does"),
    "plan": ("plan:plan", "say what a training would take, and which one to choose, before it is paid for"),
    "plan return": ("plan_return:plan_return", "reckon what one-step generation saves against many steps"),
    "plan compare": ("plan_compare:plan_compare", "put models side by side: quality, calls, seconds, cost"),
    "data inspect": ("data:data_inspect", "say what is in a data set and what it means for training"),
    "data check": ("data:data_check", "find what is wrong with a data set: damage, duplicates, leaks, uneven classes"),
    "data pack": ("data:data_pack", "leave out what should not be there, and pack the rest for training"),
    "gallery": ("gallery:gallery", "list the models that come with the package"),
    "gallery promote": ("gallery_promote:gallery_promote", "put a model into a registry, if its records show that it may be"),
    "gallery roll-back": ("gallery_promote:gallery_roll_back", "go back to the version that was served before"),
    "gallery versions": ("gallery_promote:gallery_versions", "show the versions of a registry's model and their history"),
    "serve": ("serve:serve", "put models behind an HTTP interface: generation, edits, jobs, metrics"),
    "serve keys make": ("serve_keys:make", "make an API key for a server"),
    "serve keys list": ("serve_keys:list_keys", "list API keys: who has them, what for, and whether they work"),
    "serve keys revoke": ("serve_keys:revoke", "revoke an API key, without a restart of any server"),
    "studio": ("studio:studio", "open a page to generate, edit, compare, train and reckon"),
    "doctor": ("doctor:doctor", "check this machine"),
}
"""The function of each verb (its module in atonce.verbs and its name, loaded when called) and one line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; default: those of the process.

    Returns:
        The exit status: 0, 2 for bad input, 130 for an interruption, 141 where nobody reads the output any more.

    Raises:
        BrokenPipeError: Another pipe than that of the output is broken.
    """
    try:
        status = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can be handled, and not at the very end
        return status
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        return 141


def _nobody_reads() -> bool:
    """Whether the reader of the output has gone, as in ``atonce gallery versions ... | head -1``."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError, AttributeError):  # no file, or a system without poll
        return False


def _run(arguments: Sequence[str] | None) -> int:
    """The same, for output that is read."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"atonce {atonce.__version__}")
        return 0
    verb = next((v for k in (3, 2, 1) if (v := " ".join(words[:k])) in VERBS or _below(v)), None)
    if verb is None or verb not in VERBS:
        return _no_verb(words, verb)
    with one_line_warnings():
        try:
            return parse(f"atonce {verb}", function_of(verb), words[verb.count(" ") + 1 :])()
        except AtonceError as error:
            print(f"atonce: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("atonce: interrupted", file=sys.stderr)
            return 130
        finally:
            if "torch.distributed" in sys.modules:
                from atonce.core.distribution import leave_world

                leave_world()


def function_of(verb: str) -> Callable[..., int]:
    """The function behind a verb.

    Args:
        verb: A key of :data:`VERBS`.

    Returns:
        It takes the verb's arguments and gives the exit status.
    """
    module, _, name = VERBS[verb][0].partition(":")
    function: Callable[..., int] = getattr(importlib.import_module(f"atonce.verbs.{module}"), name)
    return function


def _below(words: str) -> list[str]:
    """The verbs that begin with these words and go on."""
    return [verb for verb in VERBS if verb.startswith(words + " ")]


def _no_verb(words: list[str], group: str | None) -> int:
    """Help or complaint for words that name no verb; first words of several verbs, like ``data``, have help of their own."""
    below = _below(group) if group else []
    if group and words[group.count(" ") + 1 :][:1] in (["-h"], ["--help"]):
        print(_usage(below))
        return 0
    listed = ", ".join(below or VERBS)
    hint = f"'{group}' needs one of: {listed}" if below else f"there is no verb {words[0]!r}; verbs: {listed}"
    print(f"atonce: {hint}", file=sys.stderr)
    return 2


def _usage(verbs: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, verbs))
    lines = ["usage: atonce VERB ...", "", "One-step generative models: train, sample, edit, measure.", ""]
    lines += [f"  {verb:{width}}  {VERBS[verb][1]}" for verb in verbs]
    return "\n".join([*lines, "", "atonce VERB --help says more, with an example that runs. First: atonce demo"])
