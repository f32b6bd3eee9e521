from minimind.data.chat_format import chat_samples
from minimind.data.packing import build_row
from minimind.samples.text import load_sample_tokenizer
from minimind.types import Row

tokenizer = load_sample_tokenizer()
turns = [
    {"role": "user", "content": "Where does Greta live?"},
    {"role": "assistant", "content": "In Hask."},
]
row = Row(data={"conversations": turns}, path="chat.jsonl", line=1)
(sample,) = chat_samples([row], tokenizer)
packed = build_row([(sample.ids, sample.is_target)], len(sample.ids) + 2, tokenizer.pad_id)
print("place  token            must predict     position  document")
for place, (id, label) in enumerate(zip(packed.ids_T, packed.labels_T, strict=True)):
    token = repr(tokenizer.decode([id], skip_special=False))
    wanted = "" if label == -100 else repr(tokenizer.decode([label], skip_special=False))
    position, document = packed.positions_T[place], packed.doc_T[place]
    print(f"{place:>5}  {token:<16} {wanted:<16}{position:>9}{document:>10}")
