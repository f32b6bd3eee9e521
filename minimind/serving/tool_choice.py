"""Decides which tools a request may or must call, and builds the grammar that enforces it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from minimind.data.tokenizer import Tokenizer
from minimind.inference.grammar import Grammar, GrammarCompiler
from minimind.inference.grammar_texts import ToolForm
from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import ByType
from minimind.serving.message_schemas import Function, NonEmpty, RequestPart, Tool
from minimind.serving.structured_output import StructuredFields


class FunctionName(RequestPart):
    name: NonEmpty


class NamedTool(RequestPart):
    type: Literal["function"]
    function: FunctionName


class ToolSubset(RequestPart):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedTools(RequestPart):
    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


ToolChoice = Annotated[
    Literal["auto", "none", "required"] | NamedTool | AllowedTools, ByType("function")
]


class ChatFormFields(StructuredFields):
    """Holds the chat API's fields that constrain the answer, including the tools to call."""

    tools: list[Tool] | None = None
    functions: list[Function] | None = None
    """OpenAI's older form of `tools`; calls are answered in the older form too."""
    function_call: Literal["none", "auto"] | FunctionName | None = None
    """OpenAI's older form of `tool_choice`, for `functions`."""
    tool_choice: ToolChoice | None = None
    """auto lets the model choose; none offers no tool; required demands at least one call; a named
    function demands a call of that function; allowed_tools limits the choice to some tools."""
    parallel_tool_calls: bool | None = None
    """False allows at most one call."""

    def answer_grammar(
        self, compiler: GrammarCompiler, tokenizer: Tokenizer, after_thinking: bool
    ) -> Grammar | None:
        if not self.holds_calls:
            return super().answer_grammar(compiler, tokenizer, after_thinking)
        tools, must_call = self._chosen_tools
        return self.compile_form(
            compiler,
            tokenizer,
            content=self.content[1] if self.content and not must_call else None,
            tools=[
                ToolForm(
                    name=tool.function.name,
                    parameters=tool.function.parameters,
                    is_strict=bool(tool.function.strict),
                )
                for tool in tools
            ],
            must_call=must_call,
            one_call=self.one_call or isinstance(self.chosen, NamedTool),
            after_thinking=after_thinking,
        )

    @property
    def known_tools(self) -> Sequence[Tool]:
        """Gives the tools of the request. Raises ApiError where they are given in both forms."""
        if self.tools and self.functions:
            message = "functions and tools exclude each other: send tools"
            raise ApiError(400, message, param="functions")
        return self.tools or [Tool(function=function) for function in self.functions or ()]

    @property
    def chosen(self) -> ToolChoice | None:
        if self.functions and isinstance(self.function_call, str):
            return self.function_call
        if isinstance(self.function_call, FunctionName):
            return NamedTool(type="function", function=self.function_call)
        return self.tool_choice

    @property
    def one_call(self) -> bool:
        """Tells whether at most one call is allowed. The older form cannot express several."""
        return self.parallel_tool_calls is False or bool(self.functions)

    @property
    def holds_calls(self) -> bool:
        """Tells whether a grammar constrains the calls; otherwise the model writes them freely.
        Raises ApiError."""
        if self.chosen == "none":
            return False
        tools, must_call = self._chosen_tools
        is_held = must_call or isinstance(self.chosen, AllowedTools) or self.has_form
        return is_held or any(tool.function.strict for tool in tools) if tools else False

    @property
    def must_call(self) -> bool:
        """Tells whether the answer must consist of calls. Raises ApiError."""
        return self.chosen != "none" and self._chosen_tools[1]

    @property
    def has_form(self) -> bool:
        """Tells whether the text must have a certain form; a call is then the alternative to it."""
        return self.content is not None

    @cached_property
    def _chosen_tools(self) -> tuple[Sequence[Tool], bool]:
        """Gives the tools that may be called, and whether one must be. Raises ApiError."""
        offered = {tool.function.name: tool for tool in self.known_tools}
        match self.chosen:
            case NamedTool() as choice:
                named, must_call = [choice], True
            case AllowedTools(allowed_tools=allowed):
                named, must_call = allowed.tools, allowed.mode == "required"
            case choice:
                named, must_call = None, choice == "required"
        if not offered and (named or must_call):
            raise ApiError(
                400, "tool_choice asks for a call, but there are no tools", param="tools"
            )
        if named is None:
            return list(offered.values()), must_call
        names = [one.function.name for one in named]
        for name in names:
            if name not in offered:
                raise ApiError(
                    400,
                    f"tool_choice names {name!r}; the tools are {', '.join(offered)}",
                    param="tool_choice",
                )
        return [offered[name] for name in names], must_call
