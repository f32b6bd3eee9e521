from minimind.config.model import load_model_config
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer

tokenizer = load_sample_tokenizer()
model = Transformer(load_model_config("tiny", tokenizer_vocab=tokenizer.vocab_size))
model.init_weights(0)
engine = BatchEngine(model.eval(), tokenizer, max_batch=8, max_tokens=8 * 512, fast_decode=False)
texts = ["The river of Lumor", "卢莫的房子", "How much is 3 plus 4?", "Greta"]
requests = [
    GenerationRequest(
        prompt_ids=tokenizer.encode_document(text),
        params=SamplingParams(max_new_tokens=100, temperature=0.8, seed=7),
    )
    for text in texts
]
alone = [engine.generate([request])[0].ids for request in requests]
together = [completion.ids for completion in engine.generate(requests)]
print("the same tokens alone and together:", alone == together)

print("tokens through the model for an answer of 100 tokens, prompt of")
for prompt in (20, 200, 1000):
    cached = prompt + 99
    again = sum(prompt + made for made in range(100))
    print(
        f"{prompt:>6}: with a cache {cached:>6,}, without {again:>8,}, {again / cached:.0f} times"
    )
