from minimind.config.model import PRESETS, load_model_config

print("                              used by      shares of the weights       cache, bytes a token")
print("preset          parameters    a token  embedding attention    FFN     as it is   all heads")
for name in PRESETS:
    config = load_model_config(name)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    total, size, layers = config.num_parameters, config.head_dim, config.num_hidden_layers
    embedding = config.vocab_size * config.hidden_size / total
    attention = 2 * (heads + kv_heads) * size * config.hidden_size * layers / total
    of_a_head = 2 * layers * size * 2  # keys and values, 2 bytes each in bf16
    print(
        f"{name:<15}{total:>11,}{config.num_active_parameters:>12,}"
        f"{embedding:>10.0%}{attention:>10.0%}{1 - embedding - attention:>8.0%}"
        f"{kv_heads * of_a_head:>12,}{heads * of_a_head:>12,}"
    )
