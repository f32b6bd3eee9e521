import torch

from minimind.config.model import load_model_config
from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.distill import Distill, DistillRecipe
from minimind.stages.sft import SFT

TEACHER_STEPS, STUDENT_STEPS, FEW = 120, 60, 4
run = Run.resolve(
    stage="sft", from_checkpoint="none", model="tiny", max_steps=TEACHER_STEPS + 8, batch_size=4,
    seq_len=256,
)  # fmt: skip
batches = [run.loader.batches(step) for step in range(TEACHER_STEPS + 8)]
held_out = [batch for step in batches[TEACHER_STEPS:] for batch in step]
sft = SFT(run.resolved.recipe)


def train(stage, steps, data, **fields):
    fields = {"vocab_size": run.resolved.config.vocab_size} | fields
    model = Transformer(load_model_config("tiny", fields))
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        micro_batches = data[step % len(data)]
        count = sum(batch.count for batch in micro_batches)
        for batch in micro_batches:
            (stage.loss(model, batch).total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def held_out_loss(model):
    total = sum(sft.loss(model, batch).total.item() for batch in held_out)
    return total / sum(batch.count for batch in held_out)


teacher = train(sft, TEACHER_STEPS, batches[:TEACHER_STEPS]).requires_grad_(False)
print(f"teacher, {TEACHER_STEPS} steps, {teacher.config.num_parameters:,} weights: "
      f"{held_out_loss(teacher):.2f}")  # fmt: skip
distill = Distill(DistillRecipe(teacher="the model above"))
distill.teacher = teacher
for name, stage in (("the text alone", sft), ("text and teacher", distill)):
    student = train(stage, STUDENT_STEPS, batches[:FEW], num_hidden_layers=2)
    print(
        f"student, {STUDENT_STEPS} steps over {FEW} batches, {name}: {held_out_loss(student):.2f}"
    )
