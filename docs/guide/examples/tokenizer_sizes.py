import json

from minimind.config.model import load_model_config
from minimind.data.tokenizer_training import train_tokenizer
from minimind.samples.files import sample_data_path


def read(split):
    lines = sample_data_path(split).read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:2000]]


training, held_out = read("train"), read("val")
texts = {
    "English": [text for text in held_out if text.isascii()],
    "Chinese": [text for text in held_out if not text.isascii()],
}
sizes, rates = [], {"English": [], "Chinese": []}
print("tokens  bytes a token: English  Chinese  share of tiny's weights")
for size in (292, 400, 800, 1600):
    tokenizer = train_tokenizer(training, size, max_token_bytes=12)
    sizes.append(tokenizer.vocab_size)
    for language, some in texts.items():
        num_tokens = sum(map(len, tokenizer.encode_batch(some)))
        rates[language].append(sum(len(text.encode()) for text in some) / num_tokens)
    config = load_model_config("tiny", tokenizer_vocab=tokenizer.vocab_size)
    share = tokenizer.vocab_size * config.hidden_size / config.num_parameters
    english, chinese = rates["English"][-1], rates["Chinese"][-1]
    print(f"{tokenizer.vocab_size:>6}{english:>24.2f}{chinese:>9.2f}{share:>26.1%}")
