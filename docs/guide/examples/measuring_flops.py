from minimind.config.model import PRESETS, load_model_config
from minimind.runtime.gpus import GPUS

SEQ_LEN = 1024
h200 = GPUS["H200"]
print(f"rows of {SEQ_LEN}       FLOPs a token   of them attention   tokens/s at 40% of an H200")
for name in PRESETS:
    config = load_model_config(name)
    flops = config.flops_per_token(SEQ_LEN)
    attention = flops - 6 * config.num_active_parameters
    print(f"{name:<16}{flops:>15,}{attention / flops:>20.0%}{0.4 * h200.flops / flops:>29,.0f}")

print("one RMSNorm over 16,384 tokens of minimind2, bf16, on an H200")
num_bytes, flops = 2 * 16_384 * 768 * 2, 4 * 16_384 * 768
print(f"bytes: {1e6 * num_bytes / h200.bytes_per_s:.1f} us, arithmetic: "
      f"{1e6 * flops / h200.flops:.2f} us")  # fmt: skip
