"""The commands by name, and what every command shares: options, exit status, one line per error."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from qdeq.cli.commands import COMMANDS
from qdeq.cli.status import DONE, ERROR, STOPPED, TERMINATED
from qdeq.errors import QdeqError

__all__ = ["run"]

HELP = """Read the weights of quantized PyTorch models, and turn them back into float weights, bit for bit.

Files may be what torch.save wrote (state dicts, checkpoints, whole models), TorchScript, safetensors, ONNX models, or
the folder of a released checkpoint. No code in a file is run, and torch's quantized dtypes are not used.

\b
A first round:
  qdeq inspect model_int8.pth
  qdeq convert model_int8.pth model.safetensors
  qdeq verify model_int8.pth model.safetensors
"""

EPILOG = """\b
Exit status: 0 done, or equal; 1 different (diff, verify, explain);
2 an error; 130 stopped by Ctrl-C.

\b
Shell completion (put the line into ~/.bashrc or ~/.zshrc to keep it):
  bash:  eval "$(_QDEQ_COMPLETE=bash_source qdeq)"
  zsh:   eval "$(_QDEQ_COMPLETE=zsh_source qdeq)"
  fish:  _QDEQ_COMPLETE=fish_source qdeq | source
"""


def _debug_option() -> click.Option:
    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        state = context.find_root().ensure_object(dict)
        state["debug"] = state.get("debug", False) or value

    text = "On an error, show where in the code it arose."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=remember, help=text)


class _Group(click.Group):
    """Lists its commands in the order of a user's first round."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _with_debug(command: click.Command) -> click.Command:
    if not any(option.name == "debug" for option in command.params):
        command.params.append(_debug_option())
    return command


@click.pass_context
def _no_command(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _app() -> click.Group:
    commands = {str(name): _with_debug(command) for name, command in COMMANDS.items()}
    app = _Group(
        "qdeq",
        commands,
        help=HELP,
        epilog=EPILOG,
        callback=_no_command,
        invoke_without_command=True,
        params=[_debug_option()],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )
    return click.version_option(package_name="qdeq", prog_name="qdeq", message="%(prog)s %(version)s")(app)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)  # unwinds, so that unfinished files are removed


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; errors become one line on stderr."""
    state = {"debug": False}
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    arguments = None if argv is None else list(argv)
    try:
        status = _app().main(arguments, prog_name="qdeq", obj=state, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        print("qdeq: stopped", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("\nqdeq: stopped", file=sys.stderr)
        return STOPPED
    except click.ClickException as error:
        return _fail(error, _usage(error), state["debug"])
    except (QdeqError, OSError) as error:
        return _fail(error, str(error), state["debug"])
    except Exception as error:  # noqa: BLE001  # whatever it is: one line, and the whole of it with --debug
        text = f"expected no error of this kind, got {type(error).__name__}: {error}. Add --debug for a report to send."
        return _fail(error, text, state["debug"])
    return status if isinstance(status, int) else DONE


def _usage(error: click.ClickException) -> str:
    text = error.format_message()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "qdeq"
    return f"{text.rstrip('.')}. Try: {path} --help"


def _fail(error: BaseException, text: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print("qdeq: " + " ".join(text.split()), file=sys.stderr)
    return ERROR
