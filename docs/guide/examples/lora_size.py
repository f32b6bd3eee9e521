from minimind.config.model import load_model_config
from minimind.stages.lora import LoraRecipe

config = load_model_config("minimind2-small")
weights = config.num_parameters
full = 18 * weights  # bf16 weight; fp32 master, gradient and two averages
print("rank    trained   share   MB of training state   of a full fine-tuning")
for rank in (4, 16, 64):
    recipe = LoraRecipe(lora_ranks={"default": rank})
    trained, _ = recipe.count_weights(config)
    state = 2 * weights + 18 * trained  # the frozen base in bf16
    share = trained / weights
    print(f"{rank:>4}{trained:>11,}{share:>8.1%}{state / 1e6:>23.0f}{state / full:>24.0%}")
