import json

import numpy as np

from minimind.data.chat_format import chat_samples
from minimind.data.packing import plan_packing
from minimind.samples.files import CHAT_DATA, sample_data_path
from minimind.samples.text import load_sample_tokenizer
from minimind.types import Row

lines = sample_data_path("train", CHAT_DATA).read_text("utf-8").splitlines()[:2000]
rows = [Row(data=json.loads(line), path="chat", line=n) for n, line in enumerate(lines, 1)]
lengths = np.array([len(sample.ids) for sample in chat_samples(rows, load_sample_tokenizer())])
total = lengths.sum()
print(f"{len(lengths):,} conversations of {lengths.min()} to {lengths.max()} tokens")
print("layout                                           positions  of them padding")


def show(layout, positions):
    print(f"{layout:<46}{positions:>12,}{1 - total / positions:>17.1%}")


show("padded to 512", len(lengths) * 512)
for name, ordered in (("in order", lengths), ("sorted by length", np.sort(lengths))):
    longest = ordered.reshape(-1, 16).max(1)
    show(f"padded to the longest of 16, {name}", int(16 * longest.sum()))
plan = plan_packing(lengths, 512, split_long=False)
show("packed into rows of 512", plan.num_rows * 512)
