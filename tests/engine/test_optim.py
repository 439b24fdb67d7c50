import pytest
import torch
from torch import nn

from codemae.engine.optim import build_optimizer, set_learning_rate
from codemae.engine.settings import OptimConfig


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


CONFIGS = [
    OptimConfig(name="adamw", weight_decay=0.1),
    OptimConfig(name="lars", weight_decay=0.1),
    OptimConfig(name="adan", weight_decay=0.1, betas=[0.98, 0.92, 0.99]),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_only_parameters_of_two_dimensions_decay(config):
    module = net()
    optimizer = build_optimizer(module, config)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(module.parameters()))
    for parameter in module.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name != "lars"], ids=lambda c: c.name)
def test_forty_steps_fit_a_line(config):
    module = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    optimizer = build_optimizer(module, config)
    set_learning_rate(optimizer, 0.1)
    losses = []
    for _ in range(40):
        loss = ((module(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_lars_scales_each_matrix_by_its_trust_ratio_and_no_bias():
    module = net()
    weight, bias = module[0].weight.detach().clone(), module[0].bias.detach().clone()
    optimizer = build_optimizer(module, OptimConfig(name="lars", weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    (module(torch.tensor([[1.0, 2, 3], [0, 1, 5]])) ** 3).sum().backward()
    gradient, bias_gradient = module[0].weight.grad.clone(), module[0].bias.grad.clone()
    optimizer.step()
    trust = 0.001 * weight.norm() / (gradient.norm() + 0.1 * weight.norm())
    torch.testing.assert_close(module[0].weight, weight - 0.5 * trust * (gradient + 0.1 * weight))
    torch.testing.assert_close(module[0].bias, bias - 0.5 * bias_gradient)


def test_lars_with_momentum_matches_its_formula_written_out():
    module = net()
    decays = {"weight": 0.1, "bias": 0.0}
    wanted = {key: getattr(module[0], key).detach().clone().double() for key in decays}
    moved = {key: torch.zeros_like(value) for key, value in wanted.items()}
    config = OptimConfig(name="lars", weight_decay=0.1, momentum=0.9, bias_lr_scale=0.024)
    optimizer = build_optimizer(module, config)
    for step, lr in enumerate((0.5, 0.4, 0.3), start=1):
        set_learning_rate(optimizer, lr)
        optimizer.zero_grad()
        (module(torch.tensor([[1.0, 2, 3], [0, step, 5]])) ** 3).sum().backward()
        for key, decay in decays.items():
            w, g = wanted[key], getattr(module[0], key).grad.double()
            trust = 0.001 * w.norm() / (g.norm() + decay * w.norm()) if decay else 1.0
            moved[key] = 0.9 * moved[key] + trust * (g + decay * w)
            wanted[key] = w - lr * (1.0 if decay else 0.024) * moved[key]
        optimizer.step()
        for key, value in wanted.items():
            torch.testing.assert_close(getattr(module[0], key).double(), value, rtol=1e-5, atol=1e-6)


def test_adamw_matches_its_formula_written_out():
    module = net()
    weight = module[0].weight.detach().clone().double()
    bias = module[0].bias.detach().clone().double()
    config = OptimConfig(name="adamw", betas=[0.9, 0.95], weight_decay=0.05)
    optimizer = build_optimizer(module, config)
    moments = {"w": [0.0, 0.0], "b": [0.0, 0.0]}
    for t in range(1, 4):
        set_learning_rate(optimizer, 0.01 * t)
        optimizer.zero_grad()
        (module(torch.ones(2, 3) * t) ** 2).sum().backward()
        gradients = {"w": module[0].weight.grad.double(), "b": module[0].bias.grad.double()}
        optimizer.step()
        for key, decay in (("w", 0.05), ("b", 0.0)):
            m, v = moments[key]
            m = 0.9 * m + 0.1 * gradients[key]
            v = 0.95 * v + 0.05 * gradients[key] ** 2
            moments[key] = [m, v]
            move = 0.01 * t * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)) ** 0.5 + 1e-8)
            if key == "w":
                weight = weight * (1 - 0.01 * t * decay) - move
            else:
                bias = bias - move
    torch.testing.assert_close(module[0].weight.double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module[0].bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_fused_adamw_gives_the_same_bits_twice():
    def weights() -> list[torch.Tensor]:
        module = net()
        optimizer = build_optimizer(module, OptimConfig())
        set_learning_rate(optimizer, 0.01)
        for step in range(5):
            optimizer.zero_grad()
            (module(torch.full((2, 3), 0.1 * step)) ** 2).sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in module.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights(), strict=True))


def test_lars_without_decay_still_adapts_matrices_and_gives_biases_a_rate_of_their_own():
    module = net()
    weight, bias = module[0].weight.detach().clone(), module[0].bias.detach().clone()
    optimizer = build_optimizer(module, OptimConfig(name="lars", weight_decay=0.0, bias_lr_scale=0.024))
    set_learning_rate(optimizer, 0.2)
    (module(torch.tensor([[1.0, 2, 3], [0, 1, 5]])) ** 3).sum().backward()
    gradient, bias_gradient = module[0].weight.grad.clone(), module[0].bias.grad.clone()
    optimizer.step()
    trust = 0.001 * weight.norm() / gradient.norm()
    torch.testing.assert_close(module[0].weight, weight - 0.2 * trust * gradient)
    torch.testing.assert_close(module[0].bias, bias - 0.0048 * bias_gradient)
