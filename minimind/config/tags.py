"""Names the tags that mark thoughts, tool calls and tool results in the text of a conversation."""

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESULT, END_RESULT = "<tool_response>", "</tool_response>"
