import torch

from minimind.config.model import load_model_config
from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.pretrain import Pretrain

run = Run.resolve(model="tiny", max_steps=1, batch_size=4, seq_len=128)
(batch,) = run.loader.batches(0)
vocabulary = {"vocab_size": run.resolved.config.vocab_size}


def router_gradient(**fields):
    config = load_model_config("tiny", vocabulary | {"num_experts": 4} | fields)
    model = Transformer(config)
    model.init_weights(0)
    loss = Pretrain(run.resolved.recipe).loss(model, batch)
    (loss.objective(batch.count) / batch.count).backward()
    grads = [block.mlp.gate.weight.grad for block in model.layers]
    return torch.cat([grad.flatten() for grad in grads]).norm().item()


print("experts a token  norm_topk_prob  aux loss  gradient norm of the routers")
for experts, norm, coef in ((1, True, 0.0), (1, True, 5e-4), (1, False, 0.0), (2, True, 0.0)):
    norm_of_grad = router_gradient(
        num_experts_per_tok=experts, norm_topk_prob=norm, router_aux_loss_coef=coef
    )
    print(f"{experts:>15}{norm!s:>16}{coef:>10}{norm_of_grad:>30.1e}")
