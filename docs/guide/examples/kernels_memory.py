import torch
from minimind_kernels.op import PRESETS, build_cases

TOKENS = 2048


def kept_bytes(function, inputs):
    """Counts what autograd keeps for the backward besides the inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function(*inputs)  # alive until the count, so that no address is used twice
    num_bytes = sum(storages.values())
    del outputs
    return num_bytes


(sizes,) = (one for one in PRESETS if one.preset == "minimind2-small")
kept = {}
print(f"{TOKENS:,} tokens of {sizes.preset} in bf16     plain PyTorch      ours")
for case in build_cases(sizes, TOKENS, torch.bfloat16, "cpu"):
    plain, ours = (kept_bytes(f, case.inputs) / 2**20 for f in (case.plain, case.ours))
    kept[case.name] = plain, ours
    print(f"{case.name:<38}{plain:>9.1f} MiB{ours:>7.1f} MiB")
