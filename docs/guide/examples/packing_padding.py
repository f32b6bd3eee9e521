import itertools
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
print("layout                               positions  of them padding")


def show(layout, positions):
    print(f"{layout:<34}{positions:>12,}{1 - total / positions:>17.1%}")


show("padded to 512", len(lengths) * 512)
batches = itertools.batched(lengths.tolist(), 16) if hasattr(itertools, "batched") else []
show("padded to the longest of 16", sum(16 * max(batch) for batch in batches))
by_length = np.sort(lengths).reshape(-1, 16)
show("the same, sorted by length", int(16 * by_length.max(1).sum()))
plan = plan_packing(lengths, 512, long_documents="truncate")
show("packed into rows of 512", plan.num_rows * 512)
