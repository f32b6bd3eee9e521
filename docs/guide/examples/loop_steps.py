from minimind.run import Run

run = Run.resolve(
    stage="pretrain", model="tiny", max_steps=5, batch_size=8, seq_len=128,
    set={"micro_batch_size": 4, "warmup_steps": 3},
)  # fmt: skip
run.build()
print("step   loss  gradient norm  learning rate   tokens")
for _ in range(5):
    stats = run.step()
    print(
        f"{stats.step:>4}{stats.loss:>7.3f}{stats.grad_norm:>15.3f}{stats.learning_rate:>15.4f}"
        f"{stats.tokens:>9,}"
    )
run.close()
