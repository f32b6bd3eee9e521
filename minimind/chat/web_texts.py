"""Holds the web page's texts in English and Chinese."""

from __future__ import annotations

LANGUAGES = ("English", "中文")

TEXTS = {
    "title": ("MiniMind", "MiniMind"),
    "greeting": (
        "A small language model, trained from raw text. Ask it something.",
        "一个从零训练的小语言模型。向它提问吧。",
    ),
    "never_taught": (
        "This model was trained on text and never to chat: it continues what you write. "
        "Train it to answer with --stage sft.",
        "这个模型只在纯文本上训练过，还没有学过对话：它只会接着你写的内容往下写。"
        "用 --stage sft 训练后才会回答。",
    ),
    "ask": ("Write a message", "输入消息"),
    "new": ("New conversation", "新对话"),
    "download": ("Download as jsonl", "下载 jsonl"),
    "model": ("Model", "模型"),
    "thinking": ("Think before answering", "先思考再回答"),
    "system": ("System prompt", "系统提示"),
    "system_hint": ("None", "无"),
    "sampling": ("Sampling", "采样"),
    "temperature": ("Temperature (0: the likeliest token)", "温度（0：最可能的词）"),
    "top_p": ("Top-p", "Top-p"),
    "top_k": ("Top-k (0: all)", "Top-k（0：全部）"),
    "min_p": ("Min-p", "Min-p"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "max_new_tokens": ("Tokens at most", "最多词元数"),
    "fixed_seed": ("The same answer each time", "每次回答相同"),
    "tools": ("Tools", "工具"),
    "tools_help": (
        "A JSON list of functions in OpenAI's form. You give the results.",
        "OpenAI 格式的函数列表（JSON）。结果由你填写。",
    ),
    "tools_wrong": ("The tools are not a JSON list of objects", "工具不是 JSON 对象列表"),
    "thought": ("Thinking", "思考过程"),
    "call": ("Calls", "调用"),
    "result": ("Result of", "结果："),
    "send": ("Send the results", "提交结果"),
    "speed": ("{tokens} tokens, {speed:.1f} tokens/s", "{tokens} 个词元，{speed:.1f} 词元/秒"),
    "cut": ("cut off at the limit", "已达到上限"),
    "again": ("Answer again", "重新回答"),
}
"""The texts by name, in the order of LANGUAGES."""
