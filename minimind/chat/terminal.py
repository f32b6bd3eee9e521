"""Shows a conversation in the terminal: reads lines that are typed or piped in, and prints the
answers as they arrive."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minimind.chat.session import ChatSession
from minimind.config.tags import END_THINK, THINK
from minimind.errors import ConfigError, MiniMindError
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall
from minimind.runtime.printable import printable

DIM, RESET = "\033[2m", "\033[0m"
HELP = """\
/help                 this text
/clear                begin a new conversation
/system [TEXT]        set the system prompt, or remove it
/thinking on|off      think before answering, or not
/set [NAME=VALUE]     change an option (/set alone shows them all)
/retry                ask the last question again
/save FILE            add the conversation to a jsonl file that training takes
/exit                 leave (Ctrl-D too)
Ctrl-C stops an answer. Alt-Enter begins a new line. //… sends a text that begins with a slash."""


def read_lines(is_interactive: bool) -> Iterator[str]:
    """Yields the lines that the user types, with editing and history, or the lines that are piped
    in."""
    if not is_interactive:
        if isinstance(sys.stdin, io.TextIOWrapper):  # a file may hold anything
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    ask = build_prompt()
    while True:
        try:
            yield ask("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("(Ctrl-D or /exit leaves)")


def build_prompt() -> Callable[[str], str]:
    """Gives prompt_toolkit's prompt if it is installed and the terminal supports it, else
    `input`."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return input
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        print("(pip install prompt_toolkit for line editing and history)")
        return input
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "minimind"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    commands = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(state / "chat_history")),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
    )
    return session.prompt


class Terminal:
    """Shows a session and obeys the user's commands."""

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        plain = os.environ.get("TERM", "dumb") == "dumb" or bool(os.environ.get("NO_COLOR"))
        self._has_colour = sys.stdout.isatty() and not plain
        self.has_failed = False
        self._thinks = False
        """True while a thought is being shown."""
        if self.is_interactive:
            print("/help lists the commands")

    def show_answers(self, questions: Sequence[str]) -> None:
        """Asks the questions in turn and prints each above its answer."""
        for question in questions:
            print(f"> {question}")
            self._ask(question)

    def take(self, line: str) -> bool:
        """Handles one line from the user: a command or a question. Gives False where the user
        leaves."""
        text = line.strip()
        if not text:
            return True
        if text.startswith("/") and not text.startswith("//"):
            return self._obey(text)
        self._ask(text.removeprefix("/"))
        return True

    def _obey(self, text: str) -> bool:
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        session = self.session
        try:
            match command:
                case "/help":
                    print(HELP)
                case "/clear":
                    session.turns.clear()
                    print("(a new conversation)")
                case "/system":
                    session.system = rest
                    print(f"(system prompt: {rest or 'none'})")
                case "/thinking":
                    session.options = session.options.change(f"thinking={rest or 'on'}")
                    print(f"(thinking {'on' if session.options.thinking else 'off'})")
                case "/set":
                    if rest:
                        session.options = session.options.change(rest)
                    for name, value in session.options.show().items():
                        print(f"  {name}={value}")
                case "/retry":
                    question = session.forget_last()
                    if question is None:
                        raise ConfigError("there is no question yet")
                    self._ask(question)
                case "/save":
                    if not rest:
                        raise ConfigError("/save needs a file: /save chats.jsonl")
                    session.save(Path(rest).expanduser())
                    print(f"(added to {rest})")
                case "/exit" | "/quit":
                    return False
                case _:
                    raise ConfigError(f"there is no command {command}; /help lists them")
        except MiniMindError as error:
            self._fail(error)
        return True

    def _ask(self, text: str) -> None:
        parts = self.session.ask(text)
        try:
            self._show(parts)
        except KeyboardInterrupt:
            parts.close()  # type: ignore[attr-defined]
            self._end_thought()
            print("\n(stopped)")
        except MiniMindError as error:
            self._end_thought()
            self._fail(error)
        else:
            self._end_thought()
            print()
            self._show_speed()

    def _show(self, parts: Iterator[Part]) -> None:
        for part in parts:
            match part:
                case Reasoning(text):
                    if not self._thinks:
                        print(DIM if self._has_colour else THINK, end="")
                    self._thinks = True
                    print(printable(text), end="", flush=True)
                case Content(text):
                    if self._thinks:
                        self._end_thought()
                        print()
                    print(printable(text), end="", flush=True)
                case ToolCall(_, name, arguments):
                    print(printable(f"\n[calls {name}({arguments})]"), end="", flush=True)

    def _end_thought(self) -> None:
        if self._thinks:
            print(RESET if self._has_colour else END_THINK, end="")
        self._thinks = False

    def _show_speed(self) -> None:
        done = self.session.finished
        if not self.is_interactive or done is None:
            return
        known = [f"first token after {self.session.first_token_s:.2f} s"]
        if (speed := self.session.tokens_per_s) is not None:
            known = [f"{done.completion_tokens} tokens, {speed:.1f} tokens/s", *known]
        if done.reason == "length":
            known.append("cut off by max_new_tokens")
        text = f"({', '.join(known)})"
        print(f"{DIM}{text}{RESET}" if self._has_colour else text)

    def _fail(self, error: Exception) -> None:
        self.has_failed = True
        print(printable(f"error: {error}"), file=sys.stderr, flush=True)
