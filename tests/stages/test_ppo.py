"""Policy and critic: their losses against the formulas written out, their rates, when a step ends,
and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from labelled_answers import OtherRank, engine_of
from made_rollouts import CONFIG, alone, made_rollouts, own_tokens, plain_log_probs, rounded
from plain_ppo import exact_copy, look_before, plain_loss
from small_models import EXPERTS, assert_same_gradients, gradients, random_model, small_config
from small_ppo import DEFAULTS, UNTIED, batches_of, build, set_apart
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.engine.parameter_groups import parameter_groups
from minimind.model.state_dict import load_hf_folder
from minimind.stages.actor_critic import ActorCritic, ActorCriticOutput, count_critic_weights
from minimind.stages.ppo import PPOBatch, PPORecipe
from minimind.stages.rollout_batch import build_rollout_batch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_mean": "sample", "gamma": 0.9, "gae_lambda": 0.7, "kl_coef": 0.3},
        {"loss_mean": "length", "value_epsilon": 0.0, "value_coef": 2.0, "temperature": 0.7},
        {"epsilon": 0.05, "value_epsilon": 0.05},
    ],
    ids=["defaults", "sample", "length", "narrow"],
)
def test_losses_and_gradients_of_both_models_are_those_of_the_formulas(
    tmp_path: Path, options: dict[str, Any]
):
    """Over the micro-batches of both updates of a step, after the models have moved on."""
    stage, _, module = build(tmp_path, **options)
    recipe = stage.recipe
    set_apart(module, 0.03, seed=2)
    trajectories = made_rollouts()
    before = look_before(module, trajectories, recipe)
    parts = batches_of(trajectories, counts_tokens=recipe.loss_mean == "token")
    with torch.no_grad():
        ready = stage.look_back(engine_of(module), parts)
    set_apart(module, 0.03, seed=3)
    losses, counts = [], 0
    for batch in (batch for batches in ready for batch in batches):
        losses.append(stage.loss(module, batch))
        counts += batch.count
    total = sum((loss.total for loss in losses), torch.zeros(())) / counts

    exact, weight_D = exact_copy(module)
    expected, metrics = plain_loss(exact, weight_D, trajectories, before, recipe)
    assert total.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    wanted = gradients(cast(Any, exact), expected)
    assert_same_gradients(gradients(cast(Any, module), total), wanted, 2e-4)
    if recipe.loss_mean != "length":
        for name, value in metrics.items():
            found = sum(loss.metrics[name].item() for loss in losses) / counts
            assert found == pytest.approx(value, rel=1e-3), name


def test_the_case_above_reaches_every_branch(tmp_path: Path):
    """Clipped ratios and clipped values, and values that no clip makes worse."""
    stage, _, module = build(tmp_path)
    set_apart(module, 0.03, seed=2)
    parts = batches_of(made_rollouts(), counts_tokens=True)
    with torch.no_grad():
        ready = stage.look_back(engine_of(module), parts)
        set_apart(module, 0.03, seed=3)
        shares, further, beyond = [], [], []
        for batch in (cast(PPOBatch, batch) for batches in ready for batch in batches):
            shares.append(stage.loss(module, batch).metrics["clip_share"].item())
            output = module(batch, lambda hidden_MD, _: hidden_MD.sum(1))
            moved_R = output.values_R - batch.values_R
            further += (moved_R.abs() > 0.2).tolist()
            clipped_R = batch.values_R + moved_R.clamp(-0.2, 0.2)
            errors = ((v - batch.returns_R).abs() for v in (clipped_R, output.values_R))
            beyond += torch.gt(*errors).tolist()
    assert 0 < sum(shares) < len(further)
    assert 0 < sum(further) < len(further)
    assert 0 < sum(beyond) < sum(further)


def test_advantages_are_normalised_over_all_targets_of_the_step(tmp_path: Path):
    stage, _, module = build(tmp_path)
    set_apart(module, 0.05, seed=2)
    trajectories = made_rollouts()
    parts = batches_of(trajectories, counts_tokens=True)
    idle = build_rollout_batch(trajectories[:1], counts_tokens=True, teaches=False)
    parts[1].append(idle)
    with torch.no_grad():
        ready = stage.look_back(engine_of(module), parts)
    assert [len(batches) for batches in ready] == [2, 2]
    every = torch.cat([batch.advantages_R for batches in ready for batch in batches])
    assert every.dtype == torch.float32
    assert len(every) == sum(one.num_made for one in trajectories)
    assert every.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert every.std(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    alone_mean = ready[0][0].advantages_R.mean().item()
    assert abs(alone_mean) > 0.01, "a micro-batch by itself is not normalised"


def test_advantages_are_normalised_over_all_ranks(tmp_path: Path):
    stage, _, module = build(tmp_path, gae_lambda=1.0, gamma=1.0)
    batch = build_rollout_batch(made_rollouts(), counts_tokens=True)
    engine = OtherRank(module=module)
    others = torch.tensor([4.0, -1.0, 0.5])
    engine.others = torch.tensor([others.sum(), others.square().sum(), 3.0]).double()
    with torch.no_grad():
        ((ready,),) = stage.look_back(engine.typed, [[batch]])
    # The value head is 0 at first: an advantage is the reward.
    raw_R = batch.rewards_P[batch.sample_R]
    every = torch.cat([raw_R, others])
    wanted_R = (raw_R - every.mean()) / every.std(correction=0)
    torch.testing.assert_close(ready.advantages_R, wanted_R, rtol=1e-4, atol=1e-5)


def test_a_step_without_targets_has_a_gradient_of_0(tmp_path: Path):
    stage, _, module = build(tmp_path)
    set_apart(module, 0.05, seed=2)
    idle = build_rollout_batch(made_rollouts()[:1], counts_tokens=True, teaches=False)
    with torch.no_grad():
        ((ready,),) = stage.look_back(engine_of(module), [[idle]])
    loss = stage.loss(module, ready)
    assert (loss.total.item(), ready.count) == (0.0, 0)
    assert all((g == 0).all() for g in gradients(cast(Any, module), loss.total).values())
    with torch.no_grad():
        assert not stage.stops_before(engine_of(module), [ready])


def test_the_critic_starts_as_the_policy_with_values_of_0(tmp_path: Path):
    for config in (CONFIG, UNTIED):
        _, _, module = build(tmp_path, config)
        policy = dict(module.policy.named_parameters())
        critic = dict(module.critic.named_parameters())
        assert policy.keys() - critic.keys() == ({"lm_head.weight"} if config is UNTIED else set())
        for name, p in critic.items():
            assert torch.equal(p, policy[name]), name
            assert p is not policy[name]
        batch = build_rollout_batch(made_rollouts(), counts_tokens=True)
        output = module(batch, lambda hidden_MD, _: hidden_MD.sum(1))
        assert (output.values_R == 0).all()
        assert output.values_R.shape == (batch.num_targets,)
        own = sum(p.numel() for p in module.critic.parameters()) + config.hidden_size
        assert count_critic_weights(config) == own


def test_the_auxiliary_losses_of_both_models_are_added():
    config = small_config(**EXPERTS[0])
    module = ActorCritic(config)
    for seed, model in enumerate((module.policy, module.critic)):
        model.load_named(dict(random_model(config, seed).named_parameters()))
    batch = build_rollout_batch(made_rollouts(), counts_tokens=True)

    def head(hidden_MD: Tensor, _: Tensor) -> Tensor:
        return hidden_MD.sum(1)

    output: ActorCriticOutput = module(batch, head)
    parts = [model(batch, head).aux_loss for model in (module.policy, module.critic)]
    assert output.aux_loss is not None
    assert all(part is not None and part > 0 for part in parts)
    assert output.aux_loss.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, 5 / 3), ({"critic_learning_rate": 4e-3}, 4.0), ({"critic_learning_rate": 0.0}, 0.0)],
)
@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_the_critic_has_a_rate_of_its_own(
    config: ModelConfig, options: dict[str, Any], factor: float
):
    recipe = PPORecipe(**{**DEFAULTS, **options})
    module = ActorCritic(config)
    groups = parameter_groups(module, recipe)
    assert [group["lr_factor"] for group in groups] == pytest.approx([1.0, factor])
    critic = [*module.critic.parameters(), *module.value_head.parameters()]
    wanted = ([*module.policy.parameters()], critic)
    for group, parameters in zip(groups, wanted, strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in parameters}


def test_a_pattern_of_the_user_stands_beside_the_critics_rate():
    recipe = PPORecipe(**DEFAULTS, lr_factors={r"^policy\.embed_tokens": 0.1})
    rates = {}
    module = ActorCritic(CONFIG)
    names = {id(p): name for name, p in module.named_parameters()}
    for group in parameter_groups(module, recipe):
        rates |= {names[id(p)]: group["lr_factor"] for p in group["params"]}
    assert rates["policy.embed_tokens.weight"] == 0.1
    assert rates["critic.embed_tokens.weight"] == rates["value_head.weight"]
    assert rates["value_head.weight"] == pytest.approx(5 / 3)
    assert rates["policy.norm.weight"] == 1.0


def test_the_policy_alone_is_saved_as_a_model_folder(tmp_path: Path):
    for config in (CONFIG, UNTIED):
        _, models, module = build(tmp_path, config)
        set_apart(module, 0.05, seed=2)
        assert models.save is not None
        weights = {name: p.detach() for name, p in module.named_parameters()}
        folder = models.save(tmp_path / "checkpoint", weights)
        assert folder == tmp_path / "checkpoint" / "model"
        found_config, found = load_hf_folder(folder)
        assert found_config == config
        policy = dict(module.policy.named_parameters())
        assert found.keys() == policy.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, policy[name]), name
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        (one, *_) = made_rollouts()
        with torch.no_grad():
            logits_TV = hf_model(torch.tensor(alone(one)[0])).logits[0]
        wanted = rounded([plain_log_probs(module.policy, one)])[0]
        log_probs_TV = logits_TV.log_softmax(-1)
        assert [
            log_probs_TV[place - 1, token].item() for place, token in own_tokens(one)
        ] == pytest.approx(wanted, abs=1e-5)
