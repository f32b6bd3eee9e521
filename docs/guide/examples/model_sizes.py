from minimind.config.model import PRESETS, load_model_config

print("model            parameters  used by a token  embedding  attention    FFN  KV B/token  all heads")
for name in PRESETS:
    config = load_model_config(name)
    heads, kv_heads, size = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim,
    )  # fmt: skip
    total = config.num_parameters
    embedding = config.vocab_size * config.hidden_size
    attention = 2 * (heads + kv_heads) * size * config.hidden_size * config.num_hidden_layers
    of_a_head = 2 * config.num_hidden_layers * size * 2  # keys and values, 2 bytes each in bf16
    print(
        f"{name:<15}{total:>12,}{config.num_active_parameters:>17,}{embedding / total:>11.0%}"
        f"{attention / total:>11.0%}{(total - embedding - attention) / total:>7.0%}"
        f"{kv_heads * of_a_head:>12,}{heads * of_a_head:>11,}"
    )
