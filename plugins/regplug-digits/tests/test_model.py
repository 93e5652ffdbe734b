from __future__ import annotations

import copy
import json

import pytest
import torch
from sklearn.datasets import load_digits

import regplug
from regplug_digits.controls import registers_read, replaced_registers
from regplug_digits.data import MEAN, STD, Digits, augment, plain_accuracies, split_indices
from regplug_digits.kernel import SirenKernel, convolve
from regplug_digits.model import DigitsViT, layout_of
from regplug_digits.train import accuracy

Parts = tuple[Digits, Digits]


def test_shipped_weights_name_at_least_98_percent_of_the_held_out_fifth(shipped: DigitsViT, parts: Parts) -> None:
    assert accuracy(shipped, parts[1]) >= 98.0


def test_plain_methods_reach_the_accuracies_in_the_readme() -> None:
    figures = plain_accuracies()
    assert figures["logistic regression"] == pytest.approx(96.4, abs=0.4)
    assert figures["3 nearest neighbours"] == pytest.approx(98.6, abs=0.4)


def test_conditioning_from_outside_equals_the_models_own(shipped: DigitsViT, parts: Parts) -> None:
    images = parts[1].images[:33]
    last = shipped.blocks[-1]
    with torch.no_grad():
        tokens = shipped.last_tokens(images)
        registers = tokens[:, list(layout_of(shipped).positions(tokens.shape[1]))]
        conditioning = last.readout(registers)
        torch.testing.assert_close(shipped(images, conditioning), shipped(images))
        # and it is used: another one gives another answer
        assert not torch.allclose(shipped(images, conditioning.flip(0)), shipped(images), atol=0.1)


def test_a_conditioner_gives_the_pairs_of_the_last_block(shipped: DigitsViT, parts: Parts) -> None:
    images, last = parts[1].images[:5], shipped.blocks[-1]
    conditioner = regplug.Conditioner(layout_of(shipped), last.readout, last.film)
    seen = []
    hook = last.film.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        shipped(images)
        hook.remove()
        pairs = conditioner(shipped.last_tokens(images))
    for (gamma, beta), (own_gamma, own_beta) in zip(pairs, seen[0], strict=True):
        torch.testing.assert_close(gamma, own_gamma)
        torch.testing.assert_close(beta, own_beta)


def test_conditioning_of_another_width_is_refused(shipped: DigitsViT) -> None:
    with pytest.raises(regplug.ShapeError) as caught:
        shipped(torch.zeros(2, 8, 8), torch.zeros(2, 36))
    assert str(caught.value) == "backbone 'digits-vit': expected conditioning [2, 48], got [2, 36]."


JOIN = regplug.join(registers=("compress-concat", {"compressed_dim": 12}), patches="mean")


def test_a_join_reads_registers_and_patches_and_its_options_build_it_again(parts: Parts) -> None:
    model = DigitsViT(JOIN).eval()
    assert (model.cond_dim, model.blocks[0].film.cond_dim) == (4 * 12 + 48, 96)
    again = DigitsViT(**json.loads(json.dumps(model.options))).eval()
    again.load_state_dict(model.state_dict())
    images, last = parts[1].images[:5], model.blocks[-1]
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images))
        tokens = model.last_tokens(images)
        conditioning = last.readout(tokens)
        torch.testing.assert_close(conditioning[:, 48:], tokens[:, :16].mean(1))
        torch.testing.assert_close(model(images, conditioning), model(images))
        pairs = regplug.Conditioner(model.read_layout, last.readout, last.film)(tokens)
        torch.testing.assert_close(pairs[0][0], last.film(conditioning)[0][0])


def test_the_width_of_the_generators_follows_a_swapped_part() -> None:
    model = DigitsViT(JOIN.swap(registers="concat"))
    assert [block.film.mlp[0].in_features for block in model.blocks] == [4 * 48 + 48] * 2


def test_options_outside_the_parts_of_a_join_are_refused() -> None:
    with pytest.raises(regplug.SpecError) as caught:
        DigitsViT(JOIN, {"compressed_dim": 12})
    assert str(caught.value) == (
        "backbone 'digits-vit': readout_options: expected each in its part of the join, got compressed_dim."
    )


def test_with_the_conditioning_held_the_way_of_the_patches_is_linear(shipped: DigitsViT, parts: Parts) -> None:
    first, second = parts[1].images[:40].double(), parts[1].images[40:80].double()
    model = copy.deepcopy(shipped).double()
    held = [registers[:1] for registers in registers_read(model, first[:1])]
    means: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, inputs: means.append(inputs[0]))

    def hold(index: int, registers: torch.Tensor) -> torch.Tensor:
        return held[index].expand_as(registers)

    with torch.no_grad():
        for images in (first, second, 0.3 * first + 0.7 * second):
            with replaced_registers(model, hold):
                model(images)
        torch.testing.assert_close(means[2], 0.3 * means[0] + 0.7 * means[1])
        # and without holding it is not: the registers see the images
        means.clear()
        for images in (first, second, 0.3 * first + 0.7 * second):
            model(images)
        assert not torch.allclose(means[2], 0.3 * means[0] + 0.7 * means[1], atol=0.1)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(shipped: DigitsViT, parts: Parts) -> None:
    images = parts[1].images[:6]
    with torch.no_grad():
        alone = torch.cat([shipped(image[None]) for image in images])
        torch.testing.assert_close(alone, shipped(images), atol=1e-4, rtol=1e-4)


def test_convolution_is_what_summing_by_hand_gives() -> None:
    grids, kernels = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    expected = torch.zeros_like(grids)
    for row in range(4):
        for column in range(4):
            for from_row in range(4):
                for from_column in range(4):
                    weight = kernels[..., row - from_row + 3, column - from_column + 3]
                    expected[..., row, column] += weight * grids[..., from_row, from_column]
    torch.testing.assert_close(convolve(grids, kernels), expected)


def test_each_sample_gets_the_kernel_of_its_own_pairs() -> None:
    kernel = SirenKernel(channels=6, side=4, features=8, num_layers=2)
    pairs = [(torch.randn(3, 8), torch.randn(3, 8)) for _ in range(2)]
    drawn = kernel(pairs)
    for sample in range(3):
        alone = kernel([(gamma[sample, None], beta[sample, None]) for gamma, beta in pairs])
        torch.testing.assert_close(drawn[sample], alone[0])
    assert not torch.allclose(drawn[0], drawn[1])


def test_split_holds_out_a_fifth_of_every_class_and_never_changes() -> None:
    labels = load_digits().target
    train, test = split_indices(labels)
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train) & set(test)
    assert test[:8].tolist() == [9, 12, 15, 27, 34, 39, 52, 59]
    assert all(35 <= (labels[test] == digit).sum() <= 37 for digit in range(10))


def test_normalisation_is_that_of_the_training_part(parts: Parts) -> None:
    grey = parts[0].images * STD + MEAN
    assert grey.mean().item() == pytest.approx(MEAN, abs=1e-4)
    assert grey.std().item() == pytest.approx(STD, abs=1e-4)


def test_augmentation_moves_images_a_little_and_equally_for_one_seed(parts: Parts) -> None:
    images = parts[0].images[:50]
    first, again = (augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    correlation = torch.corrcoef(torch.stack([first.flatten(), images.flatten()]))[0, 1].item()
    assert 0.6 < correlation < 0.99
